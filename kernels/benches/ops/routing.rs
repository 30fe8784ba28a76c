//! What the router does with its logits.

use divan::Bencher;
use wattle_kernels::ops::routing;
use wattle_kernels::{DType, Tensor};

use crate::shape::{Case, bytes, f32_cases, normals};

#[divan::bench(args = f32_cases())]
fn softmax(bencher: Bencher, case: &Case) {
    let logits = logits(case);
    bencher.counter(bytes(&[&logits, &logits])).bench_local(|| routing::softmax(&logits).unwrap());
}

#[divan::bench(args = f32_cases())]
fn softmax_backward(bencher: Bencher, case: &Case) {
    let (scores, dscores) = (routing::softmax(&logits(case)).unwrap(), logits(case));
    bencher
        .counter(bytes(&[&scores, &dscores, &scores]))
        .bench_local(|| routing::softmax_backward(&dscores, &scores).unwrap());
}

#[divan::bench(args = f32_cases())]
fn top_k(bencher: Bencher, case: &Case) {
    let scores = routing::softmax(&logits(case)).unwrap();
    bencher.counter(bytes(&[&scores])).bench_local(|| routing::top_k(&scores, None, case.top_k).unwrap());
}

#[divan::bench(args = f32_cases())]
fn logsumexp(bencher: Bencher, case: &Case) {
    let logits = logits(case);
    bencher.counter(bytes(&[&logits])).bench_local(|| routing::logsumexp(&logits).unwrap());
}

fn logits(case: &Case) -> Tensor {
    normals(&[case.tokens(), case.experts], 1, DType::F32)
}
