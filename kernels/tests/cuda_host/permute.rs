//! `permute.cu`.

use std::sync::LazyLock;

use wattle_kernels::cuda::calls::permute as calls;
use wattle_kernels::{bf16, reference};

use crate::harness::{
    Buffer, Float, Kernels, assert_close, bits, floats, in_both_orders, indices, unwritten, values,
};

static KERNELS: LazyLock<Kernels> = LazyLock::new(|| Kernels::load("permute.cu"));
/// Row lengths: a column of weights, ragged, whole chunks, a row a block, a row that a block walks along.
const DIMS: [usize; 5] = [1, 5, 64, 520, 9000];

/// `n` rows below `bound`, every fifth of them none.
fn rows(n: usize, bound: usize) -> Vec<i32> {
    let mut rows = indices(n, bound, 5);
    rows.iter_mut().step_by(5).for_each(|row| *row = -1);
    rows
}

fn check_gather<T: Float>() {
    for (t, r) in [(7, 23), (4, 0), (300, 150)] {
        for d in DIMS {
            let (x, rows) = (values(t * d, 1), rows(r, t));
            let want = reference::permute::gather(&x, &rows, d);
            in_both_orders(|order| {
                let (mut x, mut indices, mut out) =
                    (floats::<T>(&x), Buffer::new(&rows), unwritten::<T>(r * d));
                let call = calls::gather(x.floats(), indices.pointer(), out.pointer(), [r, d]).unwrap();
                KERNELS.run(order, &call);
                assert_close(&out, &want, 0.0);
                bits(&out)
            });
        }
    }
}

#[test]
fn gather_follows_the_reference() {
    check_gather::<f32>();
    check_gather::<bf16>();
}

fn check_gather_sum<T: Float>() {
    for (t, k) in [(7, 3), (0, 2), (40, 1), (9, 8), (5, 10)] {
        for d in DIMS {
            let r = t * k;
            let (y, rows) = (values(r * d, 1), rows(r, r.max(1)));
            let want = reference::permute::gather_sum(&y, &rows, k, d);
            in_both_orders(|order| {
                let (mut y, mut indices, mut out) =
                    (floats::<T>(&y), Buffer::new(&rows), unwritten::<T>(t * d));
                let (pointer, shape) = (out.pointer(), [t, k, d]);
                let call = calls::gather_sum(y.floats(), indices.pointer(), pointer, shape).unwrap();
                KERNELS.run(order, &call);
                assert_close(&out, &want, T::TOLERANCE);
                bits(&out)
            });
        }
    }
}

#[test]
fn gather_sum_follows_the_reference() {
    check_gather_sum::<f32>();
    check_gather_sum::<bf16>();
}
