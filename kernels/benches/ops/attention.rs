//! Causal attention. FLOPs count the visible half alone: 2·t·s·d a head forward and 5·t·s·d backward.

use divan::Bencher;
use wattle_kernels::Tensor;
use wattle_kernels::ops::attention::{self, Mask};

use crate::shape::{Case, bytes, cases, flops};

const CAUSAL: Mask = Mask { causal: true, window: None, num_global_tokens: 0 };

#[divan::bench(args = cases())]
fn forward(bencher: Bencher, case: &Case) {
    let ([q, k, v, _], scale, count) = operands(case);
    bencher
        .counter(flops(count))
        .counter(bytes(&[&q, &k, &v, &q]))
        .bench_local(|| attention::forward(&q, &k, &v, &CAUSAL, scale, 0).unwrap());
}

#[divan::bench(args = cases())]
fn backward(bencher: Bencher, case: &Case) {
    let ([q, k, v, d_out], scale, count) = operands(case);
    let (o, lse) = attention::forward(&q, &k, &v, &CAUSAL, scale, 0).unwrap();
    bencher
        .counter(flops(count * 5 / 2))
        .counter(bytes(&[&q, &k, &v, &o, &d_out, &q, &k, &v]))
        .bench_local(|| attention::backward(&d_out, &q, &k, &v, &o, &lse, &CAUSAL, scale, 0).unwrap());
}

/// q_bthd, k_bsgd, v_bsgd and the output's gradient, the scale, and the forward's FLOPs.
fn operands(case: &Case) -> ([Tensor; 4], f32, usize) {
    let (b, t, h, g, d) = (case.batch, case.sequence, case.heads, case.kv_heads, case.head_dim());
    let (queries, keys) = ([b, t, h, d], [b, t, g, d]);
    let tensors =
        [case.tensor(&queries, 1), case.tensor(&keys, 2), case.tensor(&keys, 3), case.tensor(&queries, 4)];
    (tensors, (d as f32).sqrt().recip(), 2 * b * h * t * (t + 1) * d)
}
