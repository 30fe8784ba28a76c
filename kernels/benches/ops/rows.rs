//! Passes over the tokens' rows: normalisation, rotation, activation, sums.

use divan::Bencher;
use wattle_kernels::DType;
use wattle_kernels::ops::rope::{self, RopeTable};
use wattle_kernels::ops::{elementwise, rms_norm, swiglu};

use crate::shape::{Case, bytes, cases, normals};

#[divan::bench(args = cases())]
fn rms_norm_forward(bencher: Bencher, case: &Case) {
    let x = case.tensor(&[case.tokens(), case.d_model], 1);
    let w = normals(&[case.d_model], 2, DType::F32);
    bencher.counter(bytes(&[&x, &x])).bench_local(|| rms_norm::forward(&x, &w, 1e-5).unwrap());
}

#[divan::bench(args = cases())]
fn rms_norm_backward(bencher: Bencher, case: &Case) {
    let [x, dy] = [1, 2].map(|stream| case.tensor(&[case.tokens(), case.d_model], stream));
    let [w, mut dw] = [3, 4].map(|stream| normals(&[case.d_model], stream, DType::F32));
    let (_, rstd) = rms_norm::forward(&x, &w, 1e-5).unwrap();
    bencher
        .counter(bytes(&[&x, &dy, &x]))
        .bench_local(|| rms_norm::backward(&dy, &x, &w, &rstd, &mut dw, None).unwrap());
}

#[divan::bench(args = cases())]
fn rope_forward(bencher: Bencher, case: &Case) {
    let table = RopeTable::new(case.sequence, case.head_dim(), 1e4).unwrap();
    let x = case.tensor(&[case.batch, case.sequence, case.heads, case.head_dim()], 1);
    let counter = bytes(&[&x, &x]);
    // In place, as in a step: the tensor goes round.
    let mut turning = Some(x);
    bencher.counter(counter).bench_local(|| {
        turning = turning.take().map(|x| rope::forward(x, &table, 0).unwrap());
    });
}

#[divan::bench(args = cases())]
fn swiglu_forward(bencher: Bencher, case: &Case) {
    let (gate_up, h, weights) = activation(case);
    bencher
        .counter(bytes(&[&gate_up, &h]))
        .bench_local(|| swiglu::forward(&gate_up, Some(&weights)).unwrap());
}

#[divan::bench(args = cases())]
fn swiglu_backward(bencher: Bencher, case: &Case) {
    let (gate_up, dh, weights) = activation(case);
    bencher
        .counter(bytes(&[&gate_up, &dh, &gate_up, &dh]))
        .with_inputs(|| activation(case))
        .bench_local_values(|(gate_up, dh, _)| swiglu::backward(dh, gate_up, Some(&weights)).unwrap());
}

#[divan::bench(args = cases())]
fn add(bencher: Bencher, case: &Case) {
    let [a, b] = [1, 2].map(|stream| case.tensor(&[case.tokens(), case.d_model], stream));
    bencher.counter(bytes(&[&a, &b, &a])).bench_local(|| elementwise::add(&a, &b).unwrap());
}

/// gate_up_r2f, one h_rf and weights_r.
fn activation(case: &Case) -> (wattle_kernels::Tensor, wattle_kernels::Tensor, wattle_kernels::Tensor) {
    let (r, f) = (case.routed_rows(), case.hidden);
    (case.tensor(&[r, 2 * f], 1), case.tensor(&[r, f], 2), normals(&[r], 3, DType::F32))
}
