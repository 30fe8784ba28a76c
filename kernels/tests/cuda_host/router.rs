//! `router.cu`.

use std::sync::LazyLock;

use wattle_kernels::cuda::geometry;
use wattle_kernels::reference;

use crate::harness::{
    Argument, Buffer, Kernels, Order, assert_close, bits, floats, in_both_orders, indices, unwritten, values,
};

static KERNELS: LazyLock<Kernels> = LazyLock::new(|| Kernels::load("router.cu"));
const SIGMOID: i32 = 1;
const RENORMALISE: i32 = 2;
const SCALE: f32 = 2.5;
const EPSILON: f64 = 1e-7;

/// One router and its tokens.
#[derive(Clone, Copy)]
struct Router {
    t: usize,
    e: usize,
    k: usize,
    flags: i32,
}

/// What the forward kernel writes.
struct Routed {
    scores: Buffer<f32>,
    indices: Buffer<i32>,
    weights: Buffer<f32>,
    lse: Buffer<f32>,
    entropy: Buffer<f32>,
}

impl Router {
    fn kernel(&self, pass: &str) -> String {
        format!("router_{pass}_{}", geometry::router_kernel(self.e, self.k).unwrap())
    }

    fn forward(&self, logits: &[f64], bias: Option<&[f64]>, order: Order) -> Routed {
        let Router { t, e, k, flags } = *self;
        let (mut logits, mut bias) = (floats::<f32>(logits), bias.map(floats::<f32>));
        let mut out = Routed {
            scores: unwritten(t * e),
            indices: Buffer::new(&vec![-7; t * k]),
            weights: unwritten(t * k),
            lse: unwritten(t),
            entropy: unwritten(t),
        };
        let arguments = [
            logits.pointer(),
            bias.as_mut().map_or(Argument::NULL, Buffer::pointer),
            out.scores.pointer(),
            out.indices.pointer(),
            out.weights.pointer(),
            out.lse.pointer(),
            out.entropy.pointer(),
            Argument::long(t),
            Argument::int(e).unwrap(),
            Argument::int(k).unwrap(),
            Argument::I32(flags),
            Argument::F32(SCALE),
        ];
        KERNELS.launch(&self.kernel("forward"), order, geometry::router(t), &arguments);
        out
    }

    /// dlogits; `losses` are the load by group, and the scales of the balance loss and of the z-loss.
    fn backward(
        &self,
        logits: &[f64],
        chosen: &[i32],
        (dweights, rows): (&[f64], &[i32]),
        losses: Option<(&[i32], f32, f32)>,
        order: Order,
    ) -> Buffer<f32> {
        let Router { t, e, k, flags } = *self;
        let (load, balance_scale, z_scale) = losses.unwrap_or_default();
        let (mut dweights, mut token_to_rows) = (floats::<f32>(dweights), Buffer::new(rows));
        let (mut scores, mut indices) = (floats::<f32>(&self.scores(logits)), Buffer::new(chosen));
        let (mut loads, mut x) = (Buffer::new(load), floats::<f32>(logits));
        let mut lse = floats::<f32>(&reference::routing::logsumexp(logits, e));
        let mut dlogits = unwritten::<f32>(t * e);
        let optional = |argument| if losses.is_some() { argument } else { Argument::NULL };
        let arguments = [
            dweights.pointer(),
            token_to_rows.pointer(),
            scores.pointer(),
            indices.pointer(),
            optional(loads.pointer()),
            optional(x.pointer()),
            optional(lse.pointer()),
            dlogits.pointer(),
            Argument::long(t),
            Argument::int(e).unwrap(),
            Argument::int(k).unwrap(),
            Argument::int(load.len() / e).unwrap(),
            Argument::I32(flags),
            Argument::F32(SCALE),
            Argument::F32(balance_scale),
            Argument::F32(z_scale),
        ];
        KERNELS.launch(&self.kernel("backward"), order, geometry::router(t), &arguments);
        dlogits
    }

    fn scores(&self, logits: &[f64]) -> Vec<f64> {
        if self.flags & SIGMOID != 0 {
            reference::routing::sigmoid(logits)
        } else {
            reference::routing::softmax(logits, self.e)
        }
    }

    /// The weights of the chosen experts, from the equation.
    fn weights(&self, scores: &[f64], indices: &[i32]) -> Vec<f64> {
        let chosen = reference::routing::select(scores, indices, self.e, self.k);
        let weigh = |chosen: &[f64]| -> Vec<f64> {
            let epsilon = if self.flags & SIGMOID != 0 { EPSILON } else { 0.0 };
            let sum = chosen.iter().sum::<f64>() + epsilon;
            let divisor = if self.flags & RENORMALISE != 0 { sum } else { 1.0 };
            chosen.iter().map(|s| s / divisor * f64::from(SCALE)).collect()
        };
        chosen.chunks(self.k).flat_map(weigh).collect()
    }

    /// Σ over tokens of Σ_e load·probability.
    fn balance(&self, scores: &[f64], load: &[i32]) -> Vec<f64> {
        let groups = load.len() / self.e;
        let rows = scores.chunks(self.e).enumerate();
        rows.map(|(token, scores)| {
            let load = &load[token * groups / self.t * self.e..][..self.e];
            let sum = if self.flags & SIGMOID != 0 { scores.iter().sum::<f64>() + EPSILON } else { 1.0 };
            scores.iter().zip(load).map(|(s, &load)| s / sum * f64::from(load)).sum()
        })
        .collect()
    }
}

/// Every kind of score and weight, and numbers of experts for each kernel: less than a warp, ragged, several a lane.
fn routers() -> Vec<Router> {
    let shapes = [
        [0, 8, 2],
        [9, 8, 2],
        [21, 24, 5],
        [5, 64, 8],
        [3, 1, 1],
        [4, 100, 8],
        [3, 256, 32],
        [2, 300, 6],
        [2, 1024, 4],
    ];
    let flags = [0, SIGMOID, RENORMALISE, SIGMOID | RENORMALISE];
    shapes.iter().flat_map(|&[t, e, k]| flags.map(|flags| Router { t, e, k, flags })).collect()
}

#[test]
fn forward_follows_the_reference() {
    for router in routers() {
        let Router { t, e, k, .. } = router;
        let (logits, bias) = (values(t * e, 1), values(e, 2));
        let want = router.scores(&logits);
        for bias in [None, Some(&*bias)] {
            in_both_orders(|order| {
                let got = router.forward(&logits, bias, order);
                assert_close(&got.scores, &want, 2e-6);
                assert_close(&got.lse, &reference::routing::logsumexp(&logits, e), 2e-6);
                assert_close(&got.entropy, &reference::routing::entropy(&want, e), 4e-6);
                // The choice is exact, so it starts from the kernel's own scores.
                let scores: Vec<f32> = got.scores.read();
                let key = |(i, s): (usize, &f32)| f64::from(s + bias.map_or(0.0, |bias| bias[i % e] as f32));
                let keys: Vec<f64> = scores.iter().enumerate().map(key).collect();
                let chosen = got.indices.read();
                assert_eq!(chosen, reference::routing::top_k(&keys, &vec![0.0; e], k));
                assert_close(&got.weights, &router.weights(&want, &chosen), 4e-6);
                (chosen, bits(&got.scores), bits(&got.weights), bits(&got.lse), bits(&got.entropy))
            });
        }
    }
}

#[test]
fn ties_go_to_the_lower_index_and_nan_comes_after_every_number() {
    let router = Router { t: 2, e: 70, k: 4, flags: SIGMOID };
    let mut logits = vec![-1.0; 140];
    for expert in [69, 3, 40, 35] {
        logits[expert] = 2.0;
    }
    // Every expert but two is NaN in the second row.
    logits[70..].fill(f64::NAN);
    logits[70 + 64] = f64::NEG_INFINITY;
    logits[70 + 2] = -3.0;
    let got = router.forward(&logits, None, Order::Forward);
    assert_eq!(got.indices.read(), [3, 35, 40, 69, 2, 64, 0, 1]);
    let nan_rows: Vec<bool> = got.entropy.read().iter().map(|x| x.is_nan()).collect();
    assert_eq!(nan_rows, [false, true]);
    // By their bias, NaN of either sign.
    let router = Router { t: 1, e: 4, k: 4, flags: 0 };
    let got = router.forward(&[1.0, 2.0, 3.0, 4.0], Some(&[-1e4, f64::NAN, 0.0, -f64::NAN]), Order::Forward);
    assert_eq!(got.indices.read(), [2, 0, 1, 3]);
}

#[test]
fn large_logits_do_not_overflow() {
    let router = Router { t: 1, e: 3, k: 1, flags: 0 };
    let got = router.forward(&[1e4, 1e4, -1e4], None, Order::Forward);
    assert_eq!(got.scores.read(), [0.5, 0.5, 0.0]);
    assert_close(&got.lse, &[1e4 + 2f64.ln()], 1e-6);
    assert_close(&got.entropy, &[2f64.ln()], 1e-6);
}

/// The rows of the assignments, in an order of their own, every seventh dropped.
fn rows(n: usize) -> Vec<i32> {
    (0..n).map(|i| if i % 7 == 6 { -1 } else { (n - 1 - i) as i32 }).collect()
}

#[test]
fn backward_is_the_central_difference_of_weights_and_losses() {
    const BALANCE: f32 = 0.02;
    const Z: f32 = 0.05;
    // One expert alone has a gradient of zero, which has no scale to be compared with.
    for router in routers().into_iter().filter(|router| router.e > 1) {
        let Router { t, e, k, .. } = router;
        let (logits, dweights) = (values(t * e, 1), values(t * k, 3));
        let groups = if t % 3 == 0 && t > 0 { 3 } else { 1 };
        let (load, rows) = (indices(groups * e, 50, 4), rows(t * k));
        let routed = router.forward(&logits, None, Order::Forward);
        let chosen = routed.indices.read();
        for with_losses in [false, true] {
            // The loss whose gradient is wanted, at other logits but with the same choice.
            let loss = |logits: &[f64]| -> f64 {
                let scores = router.scores(logits);
                let weights = router.weights(&scores, &chosen);
                let gradient = |row: i32| if row >= 0 { dweights[row as usize] } else { 0.0 };
                let mut loss: f64 = weights.iter().zip(&rows).map(|(w, &row)| w * gradient(row)).sum();
                if with_losses {
                    loss += f64::from(BALANCE) * router.balance(&scores, &load).iter().sum::<f64>();
                    let lse = reference::routing::logsumexp(logits, e);
                    loss += f64::from(Z) / 2.0 * lse.iter().map(|l| l * l).sum::<f64>();
                }
                loss
            };
            let want = gradient(loss, &logits);
            in_both_orders(|order| {
                let losses = with_losses.then_some((&*load, BALANCE, Z));
                let dlogits = router.backward(&logits, &chosen, (&dweights, &rows), losses, order);
                assert_close(&dlogits, &want, 2e-5);
                bits(&dlogits)
            });
        }
    }
}

#[test]
fn a_renormalised_weight_alone_passes_no_gradient() {
    for [t, e] in [[3, 1], [5, 8]] {
        let router = Router { t, e, k: 1, flags: RENORMALISE };
        let logits = values(t * e, 1);
        let chosen = router.forward(&logits, None, Order::Forward).indices.read();
        let dlogits = router.backward(&logits, &chosen, (&values(t, 3), &rows(t)), None, Order::Forward);
        assert!(dlogits.read().iter().all(|x| x.abs() < 1e-6), "{:?}", dlogits.read());
    }
}

/// Central differences.
fn gradient(loss: impl Fn(&[f64]) -> f64, x: &[f64]) -> Vec<f64> {
    const STEP: f64 = 1e-4;
    let mut at = x.to_vec();
    let mut slope = |i: usize| {
        at[i] = x[i] + STEP;
        let above = loss(&at);
        at[i] = x[i] - STEP;
        let below = loss(&at);
        at[i] = x[i];
        (above - below) / (2.0 * STEP)
    };
    (0..x.len()).map(&mut slope).collect()
}

#[test]
fn balance_terms_follow_the_equation() {
    for router in routers() {
        let Router { t, e, flags, .. } = router;
        let scores = router.scores(&values(t * e, 1));
        let load = indices(e, 50, 4);
        let (mut buffer, mut loads, mut terms) =
            (floats::<f32>(&scores), Buffer::new(&load), unwritten::<f32>(t));
        let arguments = [
            buffer.pointer(),
            loads.pointer(),
            terms.pointer(),
            Argument::long(t),
            Argument::int(e).unwrap(),
            Argument::int(1).unwrap(),
            Argument::I32(flags),
        ];
        KERNELS.launch("router_balance_terms", Order::Reversed, geometry::router(t), &arguments);
        assert_close(&terms, &router.balance(&scores, &load), 4e-6);
    }
}

#[test]
fn the_bias_moves_towards_an_even_load() {
    let (mut bias, mut load) = (floats::<f32>(&[0.5, 0.5, 0.5, 0.5]), Buffer::new(&[4, 1, 7, 4]));
    let arguments = [bias.pointer(), load.pointer(), Argument::int(4).unwrap(), Argument::F32(0.25)];
    KERNELS.launch("router_update_bias", Order::Forward, geometry::router_update_bias(), &arguments);
    assert_eq!(bias.read(), [0.5, 0.75, 0.25, 0.5]);
}

#[test]
fn more_experts_or_choices_than_the_kernels_hold_are_refused() {
    assert_eq!(geometry::router_kernel(64, 8), Some(64));
    assert_eq!(geometry::router_kernel(65, 32), Some(256));
    assert_eq!(geometry::router_kernel(1025, 8), None);
    assert_eq!(geometry::router_kernel(64, 33), None);
}
