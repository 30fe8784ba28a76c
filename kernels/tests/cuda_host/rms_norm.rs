//! `rms_norm.cu`.

use std::sync::LazyLock;

use wattle_kernels::cuda::calls::{reduce, rms_norm as calls};
use wattle_kernels::cuda::geometry;
use wattle_kernels::{bf16, reference};

use crate::harness::{
    Argument, Buffer, Float, Kernels, Order, assert_close, bits, floats, in_both_orders, unwritten, values,
};
use crate::reduce::KERNELS as REDUCE;

static KERNELS: LazyLock<Kernels> = LazyLock::new(|| Kernels::load("rms_norm.cu"));
const EPS: f32 = 1e-5;

/// Rows and their length: none, several rows a warp, ragged, one row a warp, one row a block, the longest.
const SHAPES: [[usize; 2]; 8] =
    [[0, 64], [9, 3], [37, 64], [5, 100], [3, 131], [6, 512], [3, 1032], [2, 4096]];

fn check_forward<T: Float, W: Float>(with_residual: bool, shift: usize) {
    for [t, d] in SHAPES {
        let (x, residual, w) = (values(t * d, 1), values(t * d, 2), values(d, 3));
        let summed: Vec<f64> = match with_residual {
            true => x.iter().zip(&residual).map(|(x, r)| T::from_f64(x + r).to_f64()).collect(),
            false => x.clone(),
        };
        let (want_y, want_rstd) = reference::rms_norm::forward(&summed, &w, f64::from(EPS));
        in_both_orders(|order| {
            let x: Vec<T> = x.iter().map(|&x| T::from_f64(x)).collect();
            let (mut x, mut residual) = (Buffer::shifted(&x, shift), floats::<T>(&residual));
            let (mut w, mut sum) = (floats::<W>(&w), unwritten::<T>(t * d));
            let (mut y, mut rstd) = (unwritten::<T>(t * d), unwritten::<f32>(t));
            let optional =
                |buffer: &mut Buffer<T>| if with_residual { buffer.pointer() } else { Argument::NULL };
            let buffers = calls::Forward {
                x: x.floats(),
                residual: optional(&mut residual),
                w: w.floats(),
                sum: optional(&mut sum),
                y: y.pointer(),
                rstd: rstd.pointer(),
            };
            KERNELS.run(order, &calls::forward(&buffers, [t, d], EPS).unwrap());
            assert_close(&y, &want_y, T::TOLERANCE);
            assert_close(&rstd, &want_rstd, 1e-6);
            if with_residual {
                assert_close(&sum, &summed, 0.0);
            }
            (bits(&y), bits(&rstd))
        });
    }
}

#[test]
fn forward_follows_the_reference() {
    check_forward::<f32, f32>(false, 0);
    check_forward::<bf16, bf16>(false, 0);
    check_forward::<bf16, f32>(false, 1);
}

#[test]
fn forward_adds_the_residual_first_and_normalises_what_it_stores() {
    check_forward::<f32, f32>(true, 2);
    check_forward::<bf16, bf16>(true, 0);
    check_forward::<bf16, f32>(true, 0);
}

/// (dx, dw) of one run; `before` is what dx holds when it accumulates.
fn backward<T: Float, W: Float>(
    inputs: [&[f64]; 3],
    [t, d]: [usize; 2],
    before: Option<&[f64]>,
    order: Order,
) -> (Buffer<T>, Buffer<f32>) {
    let [dy, x, w] = inputs;
    let (_, rstd) = reference::rms_norm::forward(x, w, f64::from(EPS));
    let (mut dy, mut x, mut w, mut rstd) =
        (floats::<T>(dy), floats::<T>(x), floats::<W>(w), floats::<f32>(&rstd));
    let mut dx = before.map_or_else(|| unwritten::<T>(t * d), floats);
    let num_partials = calls::num_partials([t, d], T::DTYPE).unwrap();
    let (mut partials, mut dw) = (unwritten::<f32>(num_partials * d), floats::<f32>(&vec![1.0; d]));
    let buffers = calls::Backward {
        dy: dy.floats(),
        x: x.pointer(),
        w: w.floats(),
        rstd: rstd.pointer(),
        dx: dx.pointer(),
        partials: partials.pointer(),
    };
    KERNELS.run(order, &calls::backward(&buffers, [t, d], before.is_some()).unwrap());
    let sums = reduce::add_column_sums(partials.pointer(), dw.pointer(), [num_partials, d]).unwrap();
    REDUCE.run(order, &sums);
    (dx, dw)
}

fn check_backward<T: Float, W: Float>(accumulate: bool) {
    // More rows than blocks, so that blocks walk.
    for [t, d] in SHAPES.into_iter().chain([[1300, 264], [9000, 8]]) {
        let (dy, x, w, onto) = (values(t * d, 1), values(t * d, 2), values(d, 3), values(t * d, 4));
        let (_, rstd) = reference::rms_norm::forward(&x, &w, f64::from(EPS));
        let (mut want_dx, mut want_dw) = reference::rms_norm::backward(&dy, &x, &w, &rstd);
        want_dw.iter_mut().for_each(|dw| *dw += 1.0);
        if accumulate {
            want_dx.iter_mut().zip(&onto).for_each(|(dx, onto)| *dx += onto);
        }
        in_both_orders(|order| {
            let before = accumulate.then_some(&*onto);
            let (dx, dw) = backward::<T, W>([&dy, &x, &w], [t, d], before, order);
            assert_close(&dx, &want_dx, T::TOLERANCE);
            assert_close(&dw, &want_dw, 1e-5);
            (bits(&dx), bits(&dw))
        });
    }
}

#[test]
fn backward_follows_the_reference() {
    check_backward::<f32, f32>(false);
    check_backward::<bf16, bf16>(false);
    check_backward::<bf16, f32>(false);
}

#[test]
fn backward_adds_to_the_gradient_of_the_residual_path() {
    check_backward::<f32, f32>(true);
    check_backward::<bf16, bf16>(true);
}

#[test]
fn rows_longer_than_the_kernel_can_hold_are_refused() {
    assert!(geometry::rms_norm(1, 8192, 2).is_some());
    assert!(geometry::rms_norm(1, 8193, 2).is_none());
    assert!(geometry::rms_norm(1, 4097, 4).is_none());
}
