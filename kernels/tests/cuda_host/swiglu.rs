//! `swiglu.cu`.

use std::sync::LazyLock;

use wattle_kernels::cuda::calls::swiglu as calls;
use wattle_kernels::{bf16, reference};

use crate::harness::{
    Argument, Float, Kernels, Order, assert_close, bits, floats, in_both_orders, unwritten, values,
};

/// One for all tests, as in `reduce`.
pub static KERNELS: LazyLock<Kernels> = LazyLock::new(|| Kernels::load("swiglu.cu"));
/// Rows and hidden elements: none, several rows a warp, ragged, a row a block, a row that a block walks along.
const SHAPES: [[usize; 2]; 6] = [[0, 16], [133, 8], [9, 7], [5, 256], [3, 1030], [2, 9000]];

fn check_forward<T: Float>(weighted: bool) {
    for [r, f] in SHAPES {
        let (gate_up, weights) = (values(r * 2 * f, 1), values(r, 2));
        let want = reference::swiglu::forward(&gate_up, weighted.then_some(&weights), f);
        in_both_orders(|order| {
            let (mut gate_up, mut weights) = (floats::<T>(&gate_up), floats::<f32>(&weights));
            let mut h = unwritten::<T>(r * f);
            let weights = if weighted { weights.pointer() } else { Argument::NULL };
            KERNELS.run(order, &calls::forward(gate_up.floats(), weights, h.pointer(), [r, f]).unwrap());
            assert_close(&h, &want, T::TOLERANCE);
            bits(&h)
        });
    }
}

#[test]
fn forward_follows_the_reference() {
    for weighted in [false, true] {
        check_forward::<f32>(weighted);
        check_forward::<bf16>(weighted);
    }
}

fn check_backward<T: Float>(weighted: bool) {
    for [r, f] in SHAPES {
        let (dh, gate_up, weights) = (values(r * f, 3), values(r * 2 * f, 1), values(r, 2));
        let (want, want_weights) =
            reference::swiglu::backward(&dh, &gate_up, weighted.then_some(&weights), f);
        in_both_orders(|order| {
            let (mut dh, mut gate_up, mut weights) =
                (floats::<T>(&dh), floats::<T>(&gate_up), floats::<f32>(&weights));
            let (mut dgate_up, mut dweights) = (unwritten::<T>(r * 2 * f), unwritten::<f32>(r));
            let [weights, dweights_pointer] =
                if weighted { [weights.pointer(), dweights.pointer()] } else { [Argument::NULL; 2] };
            let (inputs, outputs) = ([gate_up.pointer(), weights], [dgate_up.pointer(), dweights_pointer]);
            KERNELS.run(order, &calls::backward(dh.floats(), inputs, outputs, [r, f]).unwrap());
            assert_close(&dgate_up, &want, T::TOLERANCE);
            if weighted {
                assert_close(&dweights, &want_weights, 1e-5);
            }
            (bits(&dgate_up), bits(&dweights))
        });
    }
}

#[test]
fn backward_follows_the_reference() {
    for weighted in [false, true] {
        check_backward::<f32>(weighted);
        check_backward::<bf16>(weighted);
    }
}

#[test]
fn large_gates_do_not_overflow() {
    let (mut gate_up, mut h) = (floats::<f32>(&[1e4, -1e4, 2.0, 3.0]), unwritten::<f32>(2));
    let call = calls::forward(gate_up.floats(), Argument::NULL, h.pointer(), [1, 2]).unwrap();
    KERNELS.run(Order::Forward, &call);
    assert_eq!(h.read(), [2e4, 0.0]);
}
