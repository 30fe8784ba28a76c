//! `elementwise.cu` and `bias.cu`.

use std::sync::LazyLock;

use wattle_kernels::cuda::calls::elementwise as calls;
use wattle_kernels::{bf16, reference};

use crate::harness::{
    Buffer, Float, Kernels, Order, assert_close, bits, floats, in_both_orders, unwritten, values,
};

static KERNELS: LazyLock<Kernels> = LazyLock::new(|| Kernels::load("elementwise.cu"));
static BIAS: LazyLock<Kernels> = LazyLock::new(|| Kernels::load("bias.cu"));
/// Lengths around a block's share, and how far the operands start behind an aligned address.
const LENGTHS: [(usize, usize); 6] = [(0, 0), (1, 0), (4095, 0), (4096, 0), (4096, 1), (10_001, 0)];

fn check_arithmetic<T: Float>() {
    for (n, shift) in LENGTHS {
        let (x, y) = (values(n, 1), values(n, 2));
        in_both_orders(|order| {
            let elements: Vec<T> = x.iter().map(|&x| T::from_f64(x)).collect();
            let (mut a, mut b, mut out) =
                (Buffer::shifted(&elements, shift), floats::<T>(&y), unwritten::<T>(n));
            KERNELS.run(order, &calls::add(a.floats(), b.pointer(), out.pointer(), n));
            assert_close(&out, &reference::elementwise::add(&x, &y), T::TOLERANCE);
            // In place.
            KERNELS.run(order, &calls::scale(a.floats(), a.pointer(), n, 0.5));
            assert_close(&a, &reference::elementwise::scale(&x, 0.5), 0.0);
            KERNELS.run(order, &calls::add(a.floats(), b.pointer(), a.pointer(), n));
            (bits(&out), bits(&a))
        });
    }
}

#[test]
fn sums_and_scaling_follow_the_reference() {
    check_arithmetic::<f32>();
    check_arithmetic::<bf16>();
}

#[test]
fn casts_round_to_nearest_even_as_the_host_does() {
    let mut x: Vec<f32> = values(5000, 3).iter().map(|&x| x as f32 * 1.003).collect();
    // Ties on both sides, the largest float, infinities, zeros, the smallest number.
    let special = [1.003_906_3, 1.011_718_8, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1e-45];
    x[..special.len()].copy_from_slice(&special);
    let (mut wide, mut narrow) = (Buffer::new(&x), unwritten::<bf16>(x.len()));
    KERNELS.run(Order::Forward, &calls::cast(wide.floats(), narrow.pointer(), x.len()));
    let want: Vec<u16> = x.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
    assert_eq!(narrow.read().iter().map(|x| x.to_bits()).collect::<Vec<_>>(), want);
    KERNELS.run(Order::Forward, &calls::cast(narrow.floats(), wide.pointer(), x.len()));
    let want: Vec<u32> = want.iter().map(|&bits| u32::from(bits) << 16).collect();
    assert_eq!(wide.read().iter().map(|x| x.to_bits()).collect::<Vec<_>>(), want);
}

#[test]
fn a_cast_keeps_nan() {
    let (mut wide, mut narrow) = (Buffer::new(&[f32::NAN, -f32::NAN]), floats::<bf16>(&[0.0; 2]));
    KERNELS.run(Order::Forward, &calls::cast(wide.floats(), narrow.pointer(), 2));
    assert!(narrow.read().iter().all(|x| x.is_nan()));
}

fn check_bias<T: Float>() {
    for [t, n] in [[0, 8], [70, 8], [9, 7], [5, 256], [2, 9000]] {
        let (x, bias) = (values(t * n, 1), values(n, 2));
        let want = reference::bias::forward(&x, &bias);
        in_both_orders(|order| {
            let (mut x, mut bias) = (floats::<T>(&x), floats::<f32>(&bias));
            let call = calls::bias(x.floats(), bias.pointer(), x.pointer(), [t, n]).unwrap();
            BIAS.run(order, &call);
            assert_close(&x, &want, T::TOLERANCE);
            bits(&x)
        });
    }
}

#[test]
fn a_bias_is_added_to_each_row_in_place() {
    check_bias::<f32>();
    check_bias::<bf16>();
}
