//! `reduce.cu`.

use std::sync::LazyLock;

use wattle_kernels::cuda::calls::reduce::{self as calls, Term};
use wattle_kernels::{bf16, reference};

use crate::harness::{
    Buffer, Float, Kernels, Order, assert_close, bits, floats, in_both_orders, unwritten, values,
};

/// One for all tests: a library loaded twice is one library, whose launches take turns by this lock alone.
pub static KERNELS: LazyLock<Kernels> = LazyLock::new(|| Kernels::load("reduce.cu"));

/// The total of `term` over `x`, which starts `shift` elements behind an aligned address.
fn total<T: Float>(term: Term, x: &[f64], shift: usize, order: Order) -> f64 {
    let elements: Vec<T> = x.iter().map(|&x| T::from_f64(x)).collect();
    let mut x = Buffer::shifted(&elements, shift);
    let (n, num_partials) = (elements.len(), calls::num_partial_sums(elements.len(), T::DTYPE));
    let (mut partials, mut total) = (Buffer::new(&vec![f64::NAN; num_partials]), Buffer::new(&[f64::NAN]));
    KERNELS.run(order, &calls::partial_sums(term, x.floats(), partials.pointer(), n));
    KERNELS.run(order, &calls::finish_sum(partials.pointer(), total.pointer(), num_partials));
    total.read()[0]
}

fn check_totals<T: Float>() {
    for (n, shift) in [(0, 0), (1, 0), (7, 1), (1000, 0), (16384, 0), (16385, 0), (50_003, 3)] {
        let x = values(n, n as u64);
        let squares = in_both_orders(|order| total::<T>(Term::Square, &x, shift, order).to_bits());
        let (squares, want) = (f64::from_bits(squares), reference::reduce::sum_of_squares(&x));
        assert!((squares - want).abs() <= 1e-6 * want, "{n} squares: {squares}, want {want}");
        let sum = in_both_orders(|order| total::<T>(Term::Value, &x, shift, order).to_bits());
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
    assert_eq!(total::<f32>(Term::Square, &x, 0, Order::Forward), f64::INFINITY);
    x[3] = f64::NAN;
    assert!(total::<bf16>(Term::Square, &x, 0, Order::Forward).is_nan());
}

fn check_columns<T: Float>() {
    for [t, n] in [[0, 8], [1, 1], [3, 16], [257, 40], [600, 259], [64, 520]] {
        let (x, before) = (values(t * n, 1), values(n, 2));
        let got = in_both_orders(|order| {
            let num_partials = calls::num_column_partials([t, n], T::DTYPE);
            let (mut x, mut out) = (floats::<T>(&x), floats::<f32>(&before));
            let mut partials = unwritten::<f32>(num_partials * n);
            KERNELS.run(order, &calls::column_sums(x.floats(), partials.pointer(), [t, n]).unwrap());
            let shape = [num_partials, n];
            KERNELS.run(order, &calls::add_column_sums(partials.pointer(), out.pointer(), shape).unwrap());
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
    let call = calls::add_column_sums(partials.pointer(), out.pointer(), [t, n]).unwrap();
    KERNELS.run(Order::Forward, &call);
    assert_close(&out, &reference::bias::backward(&x, &vec![0.0; n]), 1e-5);
}
