//! `cross_entropy.cu`.

use std::sync::LazyLock;

use wattle_kernels::cuda::Floats;
use wattle_kernels::cuda::calls::cross_entropy as calls;
use wattle_kernels::{bf16, reference};

use crate::harness::{
    Buffer, Float, Kernels, Order, assert_close, bits, floats, in_both_orders, indices, unwritten, values,
};

static KERNELS: LazyLock<Kernels> = LazyLock::new(|| Kernels::load("cross_entropy.cu"));
const SCALE: f32 = 0.3;
/// Rows and vocabulary: none, fewer logits than threads, ragged, whole chunks, several turns.
const SHAPES: [[usize; 2]; 6] = [[0, 8], [3, 1], [4, 37], [3, 4096], [2, 5003], [2, 20_000]];

/// Losses and dlogits of logits: those of the linear layer whose weight is the identity, a row at a time.
fn reference(logits: &[f64], targets: &[i32], v: usize) -> (Vec<f64>, Vec<f64>) {
    let mut losses = Vec::new();
    let mut gradients = Vec::new();
    for (row, &target) in logits.chunks(v).zip(targets) {
        // One input feature of 1, so that the weights are the logits and their gradient is dlogits.
        let (loss, _, dw) =
            reference::cross_entropy::forward_backward(&[1.0], row, &[target], 1, f64::from(SCALE));
        losses.extend(loss);
        gradients.extend(dw);
    }
    (losses, gradients)
}

fn targets(t: usize, v: usize) -> Vec<i32> {
    let mut targets = indices(t, v, 6);
    targets.iter_mut().skip(1).step_by(3).for_each(|target| *target = -1);
    targets
}

fn launch(logits: Floats, targets: &[i32], dlogits: Option<Floats>, v: usize, order: Order) -> Buffer<f32> {
    let t = targets.len();
    let (mut targets, mut losses) = (Buffer::new(targets), unwritten::<f32>(t));
    let call = calls::losses(logits, targets.pointer(), losses.pointer(), dlogits, [t, v], SCALE).unwrap();
    KERNELS.run(order, &call);
    losses
}

fn check<L: Float, D: Float>() {
    for [t, v] in SHAPES {
        let (logits, targets) = (values(t * v, 1), targets(t, v));
        let (want_losses, want_dlogits) = reference(&logits, &targets, v);
        in_both_orders(|order| {
            let (mut logits, mut dlogits) = (floats::<L>(&logits), unwritten::<D>(t * v));
            let losses = launch(logits.floats(), &targets, Some(dlogits.floats()), v, order);
            assert_close(&losses, &want_losses, 1e-5);
            assert_close(&dlogits, &want_dlogits, D::TOLERANCE.max(1e-5));
            let alone = launch(logits.floats(), &targets, None, v, order);
            assert_eq!(bits(&alone), bits(&losses));
            (bits(&losses), bits(&dlogits))
        });
    }
}

#[test]
fn losses_and_gradients_follow_the_reference() {
    check::<f32, f32>();
    check::<f32, bf16>();
    check::<bf16, bf16>();
}

fn check_in_place<T: Float>() {
    for [t, v] in SHAPES {
        let (logits, targets) = (values(t * v, 2), targets(t, v));
        let (mut x, mut elsewhere) = (floats::<T>(&logits), unwritten::<T>(t * v));
        let losses = launch(x.floats(), &targets, Some(elsewhere.floats()), v, Order::Forward);
        for order in Order::ALL {
            let mut x = floats::<T>(&logits);
            let in_place = launch(x.floats(), &targets, Some(x.floats()), v, order);
            assert_eq!(bits(&in_place), bits(&losses));
            assert_eq!(bits(&x), bits(&elsewhere));
        }
    }
}

#[test]
fn the_gradient_can_take_the_place_of_the_logits() {
    check_in_place::<f32>();
    check_in_place::<bf16>();
}

#[test]
fn large_and_infinite_logits_do_not_spoil_a_loss() {
    let mut logits = vec![f64::NEG_INFINITY; 3 * 9000];
    logits[0] = 1e4;
    logits[8999] = 1e4;
    logits[9000..18_000].fill(-1e30);
    logits[18_000..].fill(0.0);
    let mut x = floats::<f32>(&logits);
    let losses = launch(x.floats(), &[8999, 17, 4], None, 9000, Order::Forward);
    assert_close(&losses, &[2f64.ln(), 9000f64.ln(), 9000f64.ln()], 1e-5);
}

#[test]
fn a_target_outside_the_vocabulary_spoils_its_row_alone() {
    let logits = values(3 * 40, 3);
    for bad in [40, -2] {
        let (mut x, mut dlogits) = (floats::<f32>(&logits), unwritten::<f32>(120));
        let losses = launch(x.floats(), &[1, bad, 39], Some(dlogits.floats()), 40, Order::Forward);
        assert_eq!(losses.read().iter().map(|x| x.is_nan()).collect::<Vec<_>>(), [false, true, false]);
        let spoiled: Vec<usize> =
            dlogits.read().chunks(40).map(|row| row.iter().filter(|x| x.is_nan()).count()).collect();
        assert_eq!(spoiled, [0, 40, 0]);
    }
}

/// The third and fourth row of five, as a chunk of them is launched.
#[test]
fn a_chunk_of_rows_leaves_the_losses_of_the_others_alone() {
    let v = 37;
    let (logits, targets) = (values(5 * v, 4), [3, 0, 36, -1, 9]);
    let (want, _) = reference(&logits[2 * v..4 * v], &targets[2..4], v);
    let (mut x, mut targets) = (floats::<f32>(&logits[2 * v..4 * v]), Buffer::new(&targets));
    let mut losses = floats::<f32>(&[7.0; 5]);
    let [of_rows, to] = [targets.pointer(), losses.pointer()].map(|each| each.byte_offset(2 * 4));
    let call = calls::losses(x.floats(), of_rows, to, None, [2, v], SCALE).unwrap();
    KERNELS.run(Order::Forward, &call);
    assert_close(&losses, &[7.0, 7.0, want[0], want[1], 7.0], 1e-5);
}
