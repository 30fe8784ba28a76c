//! Every kernel and form against the f64 reference; equal bits for any number of threads.

use super::*;
use crate::cpu::gemm::kernel::Format;
use crate::cpu::gemm::plan::cut;
use crate::dtype::bf16;
use crate::reference;
use crate::rng::{Philox, Purpose};

/// Sizes around the borders of every kernel's tiles, of chunks and of blocks.
const SHAPES: [[usize; 3]; 17] = [
    [1, 1, 1],
    [1, 300, 33],
    [2, 3, 5],
    [3, 8, 16],
    [5, 17, 31],
    [6, 16, 64],
    [7, 33, 17],
    [14, 32, 32],
    [15, 31, 1],
    [17, 64, 129],
    [29, 7, 257],
    [64, 129, 63],
    [129, 65, 511],
    [40, 530, 24],
    [300, 40, 48],
    [61, 45, 1030],
    [1030, 41, 65],
];

/// One product.
fn gemm(a: Matrix, b: Matrix, c: MatrixMut, accumulate: bool) {
    gemm_parallel(&mut [Product { a, b, c }], accumulate).unwrap();
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Forward,
    BackwardInput,
    BackwardWeight,
}

/// Values as a product sees them, and the same in f64.
struct Operand {
    f32: Vec<f32>,
    bf16: Vec<bf16>,
}

impl Operand {
    /// Values between -0.5 and 0.5 that bf16 holds exactly, so that both dtypes stand for the same numbers.
    fn random(stream: u64, len: usize) -> Self {
        let rng = Philox::new(11, Purpose::Synthetic, stream);
        let bf16: Vec<bf16> = (0..len as u64).map(|i| bf16::from_f64(rng.uniform(i) - 0.5)).collect();
        Operand { f32: bf16.iter().map(|x| x.to_f32()).collect(), bf16 }
    }

    fn values(&self, half: bool) -> Values<'_> {
        if half { Values::Bf16(&self.bf16) } else { Values::F32(&self.f32) }
    }

    fn f64(&self, map: impl Fn(f64) -> f64) -> Vec<f64> {
        self.f32.iter().map(|x| map(f64::from(*x))).collect()
    }
}

fn expected(form: Form, x: &[f64], y: &[f64], shape: [usize; 3]) -> Vec<f64> {
    match form {
        Form::Forward => reference::matmul::forward(x, y, shape),
        Form::BackwardInput => reference::matmul::backward_input(x, y, shape),
        Form::BackwardWeight => reference::matmul::backward_weight(x, y, shape),
    }
}

/// Runs one form with one kernel and compares each element of the result.
fn check(kernel: &Kernel, form: Form, half: bool, half_out: bool, accumulate: bool, shape: [usize; 3]) {
    let [t, o, i] = shape;
    let (x_shape, y_shape, k, [m, n]) = match form {
        Form::Forward => ([t, i], [o, i], i, [t, o]),
        Form::BackwardInput => ([t, o], [o, i], o, [t, i]),
        Form::BackwardWeight => ([t, o], [t, i], t, [o, i]),
    };
    let x = Operand::random(1, x_shape[0] * x_shape[1]);
    let y = Operand::random(2, y_shape[0] * y_shape[1]);
    let before = Operand::random(3, m * n);
    let a = Matrix::new(x.values(half), x_shape[0], x_shape[1], x_shape[1]);
    let b = Matrix::new(y.values(half), y_shape[0], y_shape[1], y_shape[1]);
    let (a, b) = match form {
        Form::Forward => (a, b.t()),
        Form::BackwardInput => (a, b),
        Form::BackwardWeight => (a.t(), b),
    };
    let (mut c32, mut c16) = (before.f32.clone(), before.bf16.clone());
    let c = match half_out {
        true => MatrixMut::new(&mut c16[..], m, n, n),
        false => MatrixMut::new(&mut c32[..], m, n, n),
    };
    gemm_parallel_with(kernel, &mut [Product { a, b, c }], accumulate).unwrap();

    let want = expected(form, &x.f64(|x| x), &y.f64(|y| y), shape);
    let size = expected(form, &x.f64(f64::abs), &y.f64(f64::abs), shape);
    let squares = expected(form, &x.f64(|x| x * x), &y.f64(|y| y * y), shape);
    for (index, (want, size)) in want.into_iter().zip(size).enumerate() {
        let start = if accumulate { f64::from(before.f32[index]) } else { 0.0 };
        let got = if half_out { c16[index].to_f64() } else { f64::from(c32[index]) };
        // A sum of k products and the old value, in any order, is off by at most k + 1 roundings of 2^-24 of the sum
        // of the magnitudes (products of bf16 are exact; a product of f32 adds one rounding); storing as bf16
        // (8 significant bits) adds half a step, at most 2^-8 of the value.
        let mut tolerance = (k + 2) as f64 * 2f64.powi(-24) * (size + start.abs());
        if kernel.format == Format::Fp16 {
            // Up to 64 sums are rounded at 11 bits on the way to each f32 sum: for terms of random sign a deviation of
            // some 1.6e-3 of the root of the sum of their squares; ten times that.
            tolerance += 2f64.powi(-6) * squares[index].sqrt();
        }
        if half_out {
            tolerance += 2f64.powi(-8) * (want + start).abs();
        }
        let off = (got - (want + start)).abs();
        assert!(
            off <= tolerance,
            "{form:?} {shape:?} half {half} out {half_out} += {accumulate} {kernel:?} at {index}: {got}, want {}, \
             off by {off:e} > {tolerance:e}",
            want + start
        );
    }
}

#[test]
fn every_kernel_and_form_agrees_with_the_reference() {
    for kernel in kernel::present() {
        for form in [Form::Forward, Form::BackwardInput, Form::BackwardWeight] {
            for shape in SHAPES {
                for accumulate in [false, true] {
                    check(&kernel, form, true, true, accumulate, shape);
                    check(&kernel, form, true, false, accumulate, shape);
                    if kernel.format == Format::F32 {
                        check(&kernel, form, false, false, accumulate, shape);
                        check(&kernel, form, false, true, accumulate, shape);
                    }
                }
            }
        }
    }
}

#[test]
fn every_tile_height_and_width_agrees_with_the_reference() {
    for kernel in kernel::present() {
        for m in 1..=kernel.rows {
            for n in [1, kernel.cols / 2, kernel.cols / 2 + 1, kernel.cols] {
                check(&kernel, Form::Forward, true, false, true, [m, n, 19]);
                check(&kernel, Form::BackwardWeight, true, false, true, [19, m, n]);
            }
        }
    }
}

#[test]
fn operands_of_different_dtypes_multiply_as_f32() {
    let (x, y) = (Operand::random(1, 5 * 7), Operand::random(2, 7 * 6));
    let mut c = [0.0f32; 5 * 6];
    let mut same = c;
    gemm(
        Matrix::new(&x.f32[..], 5, 7, 7),
        Matrix::new(&y.bf16[..], 7, 6, 6),
        MatrixMut::new(&mut c[..], 5, 6, 6),
        false,
    );
    gemm(
        Matrix::new(&x.f32[..], 5, 7, 7),
        Matrix::new(&y.f32[..], 7, 6, 6),
        MatrixMut::new(&mut same[..], 5, 6, 6),
        false,
    );
    assert_eq!(c, same);
}

#[test]
fn a_product_inside_larger_matrices_touches_only_its_own_elements() {
    // A: 3 x 2 by rows of 4; B: the transpose of 5 x 2 by rows of 3; C: 3 x 5 by rows of 9.
    let a: Vec<f32> = (0..12).map(|x| x as f32).collect();
    let b: Vec<f32> = (0..15).map(|x| x as f32).collect();
    let mut c = vec![-1.0f32; 27];
    gemm(
        Matrix::new(&a[..], 3, 2, 4),
        Matrix::new(&b[..], 5, 2, 3).t(),
        MatrixMut::new(&mut c[..], 3, 5, 9),
        false,
    );
    for (index, c) in c.into_iter().enumerate() {
        let (row, col) = (index / 9, index % 9);
        let want = match col < 5 {
            true => a[row * 4] * b[col * 3] + a[row * 4 + 1] * b[col * 3 + 1],
            false => -1.0,
        };
        assert_eq!(c, want, "row {row} column {col}");
    }
}

#[test]
fn an_empty_sum_is_zero_or_leaves_what_was_there() {
    for accumulate in [false, true] {
        let mut c = [3.0f32; 4];
        let empty: [f32; 0] = [];
        gemm(
            Matrix::new(&empty[..], 2, 0, 0),
            Matrix::new(&empty[..], 0, 2, 2),
            MatrixMut::new(&mut c[..], 2, 2, 2),
            accumulate,
        );
        assert_eq!(c, [if accumulate { 3.0 } else { 0.0 }; 4]);
    }
}

#[test]
fn infinities_and_nans_stay_in_their_row_and_column() {
    for kernel in kernel::present() {
        let (m, n, k) = (kernel.rows + 1, kernel.cols + 3, 37);
        let mut x = Operand::random(1, m * k);
        let y = Operand::random(2, n * k);
        x.bf16[k + 4] = bf16::INFINITY;
        x.bf16[3 * k + 5] = bf16::NAN;
        let mut c = vec![0.0f32; m * n];
        gemm_parallel_with(
            &kernel,
            &mut [Product {
                a: Matrix::new(&x.bf16[..], m, k, k),
                b: Matrix::new(&y.bf16[..], n, k, k).t(),
                c: MatrixMut::new(&mut c[..], m, n, n),
            }],
            false,
        )
        .unwrap();
        for (row, c) in c.chunks(n).enumerate() {
            match row {
                1 => assert!(c.iter().all(|c| c.is_infinite()), "{kernel:?}"),
                3 => assert!(c.iter().all(|c| c.is_nan()), "{kernel:?}"),
                _ => assert!(c.iter().all(|c| c.is_finite()), "{kernel:?} row {row}"),
            }
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for kernel in kernel::present() {
        // Uneven products side by side, as of experts, deep enough for several blocks of K.
        let shapes = [[300, 70, 600], [1, 70, 600], [0, 70, 600], [1031, 70, 600]];
        let x: Vec<Operand> = shapes.iter().map(|[m, _, k]| Operand::random(1, m * k)).collect();
        let y = Operand::random(2, 70 * 600);
        let bits_with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut results: Vec<Vec<f32>> = shapes.iter().map(|[m, n, _]| vec![0.5; m * n]).collect();
            let mut products: Vec<Product> = shapes
                .iter()
                .zip(&x)
                .zip(&mut results)
                .map(|(([m, n, k], x), c)| Product {
                    a: Matrix::new(&x.bf16[..], *m, *k, *k),
                    b: Matrix::new(&y.bf16[..], *n, *k, *k).t(),
                    c: MatrixMut::new(&mut c[..], *m, *n, *n),
                })
                .collect();
            pool.install(|| gemm_parallel_with(&kernel, &mut products, true)).unwrap();
            drop(products);
            results.concat().into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let one = bits_with(1);
        for threads in [2, 3, 5] {
            assert!(one == bits_with(threads), "{threads} threads, {kernel:?}");
        }
    }
}

#[test]
fn cuts_are_even_whole_units_and_cover_the_range() {
    for (len, max, unit) in
        [(1, 14, 1), (256, 14, 1), (100, 32, 16), (257, 256, 16), (513, 512, 32), (0, 8, 1)]
    {
        let parts: Vec<_> = cut(5..5 + len, max, unit).collect();
        let mut at = 5;
        for part in &parts {
            assert_eq!(part.start, at);
            assert!(!part.is_empty() && part.len() <= max, "{part:?} of {len} by {max}");
            assert!(part.end == 5 + len || part.len() % unit == 0);
            at = part.end;
        }
        assert_eq!(at, 5 + len);
    }
}
