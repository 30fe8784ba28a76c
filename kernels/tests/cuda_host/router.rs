//! `router.cu`.

use std::sync::LazyLock;

use wattle_kernels::cuda::calls::router as calls;
use wattle_kernels::cuda::{Call, geometry};
use wattle_kernels::ops::router::Rule;
use wattle_kernels::reference;

use crate::harness::{
    Argument, Buffer, Kernels, Order, assert_close, bits, floats, in_both_orders, unwritten, values,
};

static KERNELS: LazyLock<Kernels> = LazyLock::new(|| Kernels::load("router.cu"));
const SCALE: f32 = 2.5;
const EPSILON: f64 = 1e-7;

/// One router and its tokens.
#[derive(Clone, Copy)]
struct Router {
    t: usize,
    e: usize,
    rule: Rule,
}

fn rule(top_k: usize, sigmoid: bool, renormalise: bool) -> Rule {
    Rule { sigmoid, renormalise, scale: SCALE, top_k }
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
    fn forward(&self, logits: &[f64], bias: Option<&[f64]>, order: Order) -> Routed {
        let Router { t, e, rule } = *self;
        let (mut logits, mut bias) = (floats::<f32>(logits), bias.map(floats::<f32>));
        let mut out = Routed {
            scores: unwritten(t * e),
            indices: Buffer::new(&vec![-7; t * rule.top_k]),
            weights: unwritten(t * rule.top_k),
            lse: unwritten(t),
            entropy: unwritten(t),
        };
        let buffers = calls::Forward {
            logits: logits.pointer(),
            bias: bias.as_mut().map_or(Argument::NULL, Buffer::pointer),
            scores: out.scores.pointer(),
            indices: out.indices.pointer(),
            weights: out.weights.pointer(),
            lse: out.lse.pointer(),
            entropy: out.entropy.pointer(),
        };
        KERNELS.run(order, &calls::forward(&buffers, [t, e], rule).unwrap());
        out
    }

    /// dlogits; `losses` are the shares by group, and the coefficients of the balance loss and of the z-loss.
    fn backward(
        &self,
        logits: &[f64],
        chosen: &[i32],
        (dweights, rows): (&[f64], &[i32]),
        losses: Option<(&[f64], [f32; 2])>,
        order: Order,
    ) -> Buffer<f32> {
        let Router { t, e, rule } = *self;
        let (shares, coefficients) = losses.unwrap_or_default();
        let (mut dweights, mut token_to_rows) = (floats::<f32>(dweights), Buffer::new(rows));
        let (mut scores, mut indices) = (floats::<f32>(&self.scores(logits)), Buffer::new(chosen));
        let (mut shares_ge, mut x) = (floats::<f32>(shares), floats::<f32>(logits));
        let mut lse = floats::<f32>(&reference::routing::logsumexp(logits, e));
        let mut dlogits = unwritten::<f32>(t * e);
        let optional = |argument| if losses.is_some() { argument } else { Argument::NULL };
        let buffers = calls::Backward {
            dweights: dweights.pointer(),
            token_to_rows: token_to_rows.pointer(),
            scores: scores.pointer(),
            indices: indices.pointer(),
            shares: optional(shares_ge.pointer()),
            logits: x.pointer(),
            lse: optional(lse.pointer()),
            dlogits: dlogits.pointer(),
        };
        let call = calls::backward(&buffers, [t, e], (shares.len() / e).max(1), rule, coefficients).unwrap();
        KERNELS.run(order, &call);
        dlogits
    }

    fn scores(&self, logits: &[f64]) -> Vec<f64> {
        if self.rule.sigmoid {
            reference::routing::sigmoid(logits)
        } else {
            reference::routing::softmax(logits, self.e)
        }
    }

    /// The weights of the chosen experts, from the equation.
    fn weights(&self, scores: &[f64], indices: &[i32]) -> Vec<f64> {
        let Rule { sigmoid, renormalise, top_k, .. } = self.rule;
        let chosen = reference::routing::select(scores, indices, self.e, top_k);
        let weigh = |chosen: &[f64]| -> Vec<f64> {
            let epsilon = if sigmoid { EPSILON } else { 0.0 };
            let sum = chosen.iter().sum::<f64>() + epsilon;
            let divisor = if renormalise { sum } else { 1.0 };
            chosen.iter().map(|s| s / divisor * f64::from(SCALE)).collect()
        };
        chosen.chunks(top_k).flat_map(weigh).collect()
    }

    /// The balance loss without its coefficient.
    fn balance(&self, scores: &[f64], shares: &[f64]) -> f64 {
        let groups = shares.len() / self.e;
        let rows = scores.chunks(self.e).enumerate();
        let term = |(token, scores): (usize, &[f64])| -> f64 {
            let shares = &shares[token * groups / self.t * self.e..][..self.e];
            let sum = if self.rule.sigmoid { scores.iter().sum::<f64>() + EPSILON } else { 1.0 };
            scores.iter().zip(shares).map(|(s, share)| s / sum * share).sum()
        };
        rows.map(term).sum::<f64>() * self.e as f64 / self.t.max(1) as f64
    }

    /// The z-loss without its coefficient.
    fn z(&self, logits: &[f64]) -> f64 {
        let lse = reference::routing::logsumexp(logits, self.e);
        lse.iter().map(|l| l * l).sum::<f64>() / self.t.max(1) as f64
    }

    fn num_groups(&self) -> usize {
        if self.t > 0 && self.t.is_multiple_of(3) { 3 } else { 1 }
    }

    fn shares(&self) -> Vec<f64> {
        values(self.num_groups() * self.e, 4).iter().map(|share| share.abs()).collect()
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
    let kinds = [(false, false), (true, false), (false, true), (true, true)];
    let of = |&[t, e, k]: &[usize; 3]| {
        kinds.map(|(sigmoid, renormalise)| Router { t, e, rule: rule(k, sigmoid, renormalise) })
    };
    shapes.iter().flat_map(of).collect()
}

#[test]
fn forward_follows_the_reference() {
    for router in routers() {
        let Router { t, e, rule: Rule { top_k: k, .. } } = router;
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
    let router = Router { t: 2, e: 70, rule: rule(4, true, false) };
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
    let router = Router { t: 1, e: 4, rule: rule(4, false, false) };
    let got = router.forward(&[1.0, 2.0, 3.0, 4.0], Some(&[-1e4, f64::NAN, 0.0, -f64::NAN]), Order::Forward);
    assert_eq!(got.indices.read(), [2, 0, 1, 3]);
}

#[test]
fn large_logits_do_not_overflow() {
    let router = Router { t: 1, e: 3, rule: rule(1, false, false) };
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
    const BALANCE: f32 = 0.75;
    const Z: f32 = 0.125;
    // One expert alone has a gradient of zero, which has no scale to be compared with.
    for router in routers().into_iter().filter(|router| router.e > 1) {
        let Router { t, e, rule: Rule { top_k: k, .. } } = router;
        let (logits, dweights) = (values(t * e, 1), values(t * k, 3));
        let (shares, rows) = (router.shares(), rows(t * k));
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
                    loss += f64::from(BALANCE) * router.balance(&scores, &shares);
                    loss += f64::from(Z) * router.z(logits);
                }
                loss
            };
            let want = gradient(loss, &logits);
            in_both_orders(|order| {
                let losses = with_losses.then_some((&*shares, [BALANCE, Z]));
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
        let router = Router { t, e, rule: rule(1, false, true) };
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
fn losses_follow_the_equation_and_are_zero_where_they_are_not_asked_for() {
    const COEFFICIENTS: [f32; 2] = [0.75, 0.125];
    // More tokens than the sum over them has threads.
    let many = Router { t: 2500, e: 8, rule: rule(2, true, true) };
    for router in routers().into_iter().chain([many]) {
        let Router { t, e, rule } = router;
        let (logits, shares) = (values(t * e, 1), router.shares());
        let scores = router.scores(&logits);
        let want = [router.balance(&scores, &shares) * 0.75, router.z(&logits) * 0.125];
        in_both_orders(|order| {
            let (mut scores, mut shares_ge) = (floats::<f32>(&scores), floats::<f32>(&shares));
            let mut lse = floats::<f32>(&reference::routing::logsumexp(&logits, e));
            let (mut terms, mut both) = (unwritten::<f32>(t), unwritten::<f32>(2));
            let buffers = [scores.pointer(), shares_ge.pointer(), terms.pointer()];
            let call = calls::balance_terms(buffers, [t, e], router.num_groups(), rule).unwrap();
            KERNELS.run(order, &call);
            let losses = |terms, lse, losses: &mut Buffer<f32>| -> Call {
                calls::losses([terms, lse, losses.pointer()], [t, e], COEFFICIENTS)
            };
            KERNELS.run(order, &losses(terms.pointer(), lse.pointer(), &mut both));
            for (got, want) in both.read().iter().zip(want) {
                assert!((f64::from(*got) - want).abs() <= 4e-6 * want.abs(), "{got} and {want}");
            }
            let mut neither = unwritten::<f32>(2);
            KERNELS.run(order, &losses(Argument::NULL, Argument::NULL, &mut neither));
            assert_eq!(neither.read(), [0.0; 2]);
            bits(&both)
        });
    }
}

#[test]
fn more_experts_or_choices_than_the_kernels_hold_are_refused() {
    assert_eq!(geometry::router_kernel(64, 8), Some(64));
    assert_eq!(geometry::router_kernel(65, 32), Some(256));
    assert_eq!(geometry::router_kernel(1025, 8), None);
    assert_eq!(geometry::router_kernel(64, 33), None);
    let buffers = [Argument::NULL; 7];
    let [logits, bias, scores, indices, weights, lse, entropy] = buffers;
    let buffers = calls::Forward { logits, bias, scores, indices, weights, lse, entropy };
    let error = calls::forward(&buffers, [5, 2000], rule(2, false, true)).unwrap_err().to_string();
    assert_eq!(
        error,
        "router: logits has shape [5, 2000], expected at most 1024 experts of which a token takes at most 32, not 2; \
         more only run on the cpu"
    );
}
