//! What the router does with its logits, and the plan that follows.

use divan::Bencher;
use wattle_kernels::ops::router::{self, Losses, Routed, Rule};
use wattle_kernels::ops::routing_plan;
use wattle_kernels::{DType, Tensor};

use crate::shape::{Case, bytes, f32_cases, normals};

#[divan::bench(args = f32_cases())]
fn forward(bencher: Bencher, case: &Case) {
    let logits = logits(case);
    let run = || router::forward(&logits, None, rule(case), true).unwrap();
    bencher.counter(bytes(&[&logits, &logits])).bench_local(run);
}

#[divan::bench(args = f32_cases())]
fn backward(bencher: Bencher, case: &Case) {
    let (logits, routed) = routed(case);
    let plan = routing_plan::plan(&routed.indices_tk, &routed.weights_tk, case.experts, None).unwrap();
    let losses = Losses {
        shares_ge: None,
        balance_coefficient: 0.0,
        lse_t: routed.lse_t.as_ref(),
        z_coefficient: 1e-3,
    };
    let run = || {
        let rows = &plan.token_to_rows_tk;
        router::backward(&plan.weights_r, rows, &logits, &routed, rule(case), &losses).unwrap()
    };
    bencher.counter(bytes(&[&logits, &logits, &logits])).bench_local(run);
}

#[divan::bench(args = f32_cases())]
fn plan(bencher: Bencher, case: &Case) {
    let (_, Routed { indices_tk, weights_tk, .. }) = routed(case);
    let run = || routing_plan::plan(&indices_tk, &weights_tk, case.experts, None).unwrap();
    bencher.counter(bytes(&[&indices_tk, &weights_tk])).bench_local(run);
}

fn rule(case: &Case) -> Rule {
    Rule { sigmoid: false, renormalise: true, scale: 1.0, top_k: case.top_k }
}

fn logits(case: &Case) -> Tensor {
    normals(&[case.tokens(), case.experts], 1, DType::F32)
}

fn routed(case: &Case) -> (Tensor, Routed) {
    let logits = logits(case);
    let routed = router::forward(&logits, None, rule(case), true).unwrap();
    (logits, routed)
}
