//! Products with the query projection of each preset; `router` with the narrow one of the router, always in f32.

use divan::Bencher;
use wattle_kernels::DType;
use wattle_kernels::ops::matmul;

use crate::shape::{Case, bytes, cases, f32_cases, flops, normals};

#[divan::bench(args = cases())]
fn forward(bencher: Bencher, case: &Case) {
    let (x, w, y, count) = operands(case, case.d_model);
    bencher
        .counter(flops(count))
        .counter(bytes(&[&x, &w, &y]))
        .bench_local(|| matmul::forward(&x, &w, case.dtype).unwrap());
}

#[divan::bench(args = cases())]
fn backward_input(bencher: Bencher, case: &Case) {
    let (x, w, dy, count) = operands(case, case.d_model);
    bencher
        .counter(flops(count))
        .counter(bytes(&[&dy, &w, &x]))
        .bench_local(|| matmul::backward_input(&dy, &w, None).unwrap());
}

#[divan::bench(args = cases())]
fn backward_weight(bencher: Bencher, case: &Case) {
    let (x, w, dy, count) = operands(case, case.d_model);
    let mut dw = normals(w.shape(), 4, DType::F32);
    bencher
        .counter(flops(count))
        .counter(bytes(&[&dy, &x, &dw, &dw]))
        .bench_local(|| matmul::backward_weight(&dy, &x, &mut dw).unwrap());
}

#[divan::bench(args = f32_cases())]
fn router_forward(bencher: Bencher, case: &Case) {
    let (x, w, y, count) = operands(case, case.experts);
    bencher
        .counter(flops(count))
        .counter(bytes(&[&x, &w, &y]))
        .bench_local(|| matmul::forward(&x, &w, DType::F32).unwrap());
}

/// x_ti, w_oi, a y_to and the FLOPs of one product.
fn operands(
    case: &Case,
    out: usize,
) -> (wattle_kernels::Tensor, wattle_kernels::Tensor, wattle_kernels::Tensor, usize) {
    let (t, d) = (case.tokens(), case.d_model);
    (case.tensor(&[t, d], 1), case.tensor(&[out, d], 2), case.tensor(&[t, out], 3), 2 * t * out * d)
}
