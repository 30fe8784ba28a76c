//! `reduce.cu`.

use std::sync::LazyLock;

use wattle_kernels::cuda::geometry;
use wattle_kernels::{bf16, reference};

use crate::harness::{
    Argument, Buffer, Float, Kernels, Order, assert_close, bits, floats, in_both_orders, unwritten, values,
};

static KERNELS: LazyLock<Kernels> = LazyLock::new(|| Kernels::load("reduce.cu"));

/// The total of `kernel` over `x`, which starts `shift` elements behind an aligned address.
fn total<T: Float>(kernel: &str, x: &[f64], shift: usize, order: Order) -> f64 {
    let elements: Vec<T> = x.iter().map(|&x| T::from_f64(x)).collect();
    let mut x = Buffer::shifted(&elements, shift);
    let launch = geometry::sum(elements.len(), size_of::<T>());
    let num_blocks = launch.grid[0] as usize;
    let (mut partials, mut total) = (Buffer::new(&vec![f64::NAN; num_blocks]), Buffer::new(&[f64::NAN]));
    let arguments = [x.pointer(), partials.pointer(), Argument::long(elements.len())];
    KERNELS.launch(&format!("{kernel}_{}", T::SUFFIX), order, launch, &arguments);
    let arguments = [partials.pointer(), total.pointer(), Argument::long(num_blocks)];
    KERNELS.launch("finish_sum", order, geometry::finish_sum(), &arguments);
    total.read()[0]
}

fn check_totals<T: Float>() {
    for (n, shift) in [(0, 0), (1, 0), (7, 1), (1000, 0), (16384, 0), (16385, 0), (50_003, 3)] {
        let x = values(n, n as u64);
        let squares = in_both_orders(|order| total::<T>("sum_of_squares", &x, shift, order).to_bits());
        let (squares, want) = (f64::from_bits(squares), reference::reduce::sum_of_squares(&x));
        assert!((squares - want).abs() <= 1e-6 * want, "{n} squares: {squares}, want {want}");
        let sum = in_both_orders(|order| total::<T>("sum", &x, shift, order).to_bits());
        let (sum, want) = (f64::from_bits(sum), reference::reduce::sum(&x));
        assert!((sum - want).abs() <= 1e-6 * (n as f64).sqrt(), "{n} values: {sum}, want {want}");
    }
}

#[test]
fn totals_follow_the_reference() {
    check_totals::<f32>();
    check_totals::<bf16>();
}

#[test]
fn a_total_is_not_finite_when_one_value_is_not() {
    let mut x = values(20_000, 1);
    x[19_999] = f64::INFINITY;
    assert_eq!(total::<f32>("sum_of_squares", &x, 0, Order::Forward), f64::INFINITY);
    x[3] = f64::NAN;
    assert!(total::<bf16>("sum_of_squares", &x, 0, Order::Forward).is_nan());
}

fn check_columns<T: Float>() {
    for [t, n] in [[0, 8], [1, 1], [3, 16], [257, 40], [600, 259], [64, 520]] {
        let (x, before) = (values(t * n, 1), values(n, 2));
        let got = in_both_orders(|order| {
            let launch = geometry::column_sums(t, n, size_of::<T>());
            let num_blocks = launch.grid[0] as usize;
            let (mut x, mut out) = (floats::<T>(&x), floats::<f32>(&before));
            let mut partials = unwritten::<f32>(num_blocks * n);
            let arguments = [x.pointer(), partials.pointer(), Argument::long(t), Argument::int(n).unwrap()];
            KERNELS.launch(&format!("column_sums_{}", T::SUFFIX), order, launch, &arguments);
            let arguments =
                [partials.pointer(), out.pointer(), Argument::long(num_blocks), Argument::int(n).unwrap()];
            KERNELS.launch("add_column_sums", order, geometry::add_column_sums(n), &arguments);
            assert_close(
                &out,
                &reference::bias::backward(&x.read().iter().map(|x| x.to_f64()).collect::<Vec<_>>(), &before),
                1e-5,
            );
            bits(&out)
        });
        assert_eq!(got.len(), n);
    }
}

#[test]
fn column_sums_are_added_to_what_was_there() {
    check_columns::<f32>();
    check_columns::<bf16>();
}

#[test]
fn sums_over_more_partials_than_a_block_has_rows_are_whole() {
    let (t, n) = (1000, 70);
    let x = values(t * n, 3);
    let (mut partials, mut out) = (floats::<f32>(&x), floats::<f32>(&vec![0.0; n]));
    let arguments = [partials.pointer(), out.pointer(), Argument::long(t), Argument::int(n).unwrap()];
    KERNELS.launch("add_column_sums", Order::Forward, geometry::add_column_sums(n), &arguments);
    assert_close(&out, &reference::bias::backward(&x, &vec![0.0; n]), 1e-5);
}
