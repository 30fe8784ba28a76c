//! The head and its loss in one.

use divan::Bencher;
use wattle_kernels::ops::cross_entropy;
use wattle_kernels::{DType, Tensor};

use crate::shape::{Case, bytes, cases, flops, integers, normals};

#[divan::bench(args = cases())]
fn forward(bencher: Bencher, case: &Case) {
    let (x, w, targets, count) = operands(case);
    bencher
        .counter(flops(count))
        .counter(bytes(&[&x, &w]))
        .bench_local(|| cross_entropy::forward(&x, &w, &targets).unwrap());
}

#[divan::bench(args = cases())]
fn forward_backward(bencher: Bencher, case: &Case) {
    let (x, w, targets, count) = operands(case);
    let mut dw = normals(w.shape(), 3, DType::F32);
    bencher.counter(flops(3 * count)).counter(bytes(&[&x, &x, &w, &dw, &dw])).bench_local(|| {
        cross_entropy::forward_backward(&x, &w, &targets, 1.0 / case.tokens() as f32, &mut dw).unwrap()
    });
}

/// x_td, w_vd, the targets, and the forward's FLOPs.
fn operands(case: &Case) -> (Tensor, Tensor, Tensor, usize) {
    let (t, v, d) = (case.tokens(), case.vocab, case.d_model);
    (case.tensor(&[t, d], 1), case.tensor(&[v, d], 2), integers(&[t], v), 2 * t * v * d)
}
