//! `rope.cu`.

use std::sync::LazyLock;

use wattle_kernels::cuda::calls::rope::{Rotation, rotate};
use wattle_kernels::{bf16, reference};

use crate::harness::{Buffer, Float, Kernels, assert_close, bits, floats, in_both_orders, values};

static KERNELS: LazyLock<Kernels> = LazyLock::new(|| Kernels::load("rope.cu"));
const THETA: f64 = 1e4;

/// Shape [b, t, h, d], rotary dimension, first position, and how far x starts behind an aligned address.
const CASES: [([usize; 4], usize, usize, usize); 6] = [
    ([2, 5, 3, 32], 32, 0, 0),
    ([1, 7, 5, 64], 64, 11, 0),
    ([3, 4, 2, 24], 16, 2, 0),
    ([2, 3, 2, 10], 6, 1, 0),
    ([1, 3, 2, 16], 16, 0, 1),
    ([0, 3, 2, 16], 16, 0, 0),
];

fn check<T: Float>(back: bool) {
    for (shape, rotary_dim, start, shift) in CASES {
        let [b, t, h, d] = shape;
        let (x, half) = (values(b * t * h * d, 1), rotary_dim / 2);
        let angles = (0..start + t).flat_map(|position| {
            (0..half).map(move |i| reference::rope::angle(position, i, rotary_dim, THETA))
        });
        let (sin, cos): (Vec<f64>, Vec<f64>) = angles.map(f64::sin_cos).unzip();
        let want = match back {
            false => reference::rope::forward(&x, shape, rotary_dim, THETA, start),
            true => reference::rope::backward(&x, shape, rotary_dim, THETA, start),
        };
        in_both_orders(|order| {
            let x: Vec<T> = x.iter().map(|&x| T::from_f64(x)).collect();
            let (mut x, mut cos, mut sin) =
                (Buffer::shifted(&x, shift), floats::<f32>(&cos), floats::<f32>(&sin));
            let rotation = Rotation { shape, half, start_position: start, back };
            KERNELS.run(order, &rotate(x.floats(), cos.pointer(), sin.pointer(), &rotation).unwrap());
            assert_close(&x, &want, T::TOLERANCE);
            bits(&x)
        });
    }
}

#[test]
fn forward_follows_the_reference() {
    check::<f32>(false);
    check::<bf16>(false);
}

#[test]
fn backward_follows_the_reference() {
    check::<f32>(true);
    check::<bf16>(true);
}
