//! What moves the weights, on the experts' gate and up matrices: the largest parameter.

use divan::Bencher;
use wattle_kernels::ops::adamw::{self, AdamW, Slot, State};
use wattle_kernels::ops::reduce;
use wattle_kernels::{DType, Tensor};

use crate::shape::{Case, bytes, cases, f32_cases, normals};

const SETTINGS: AdamW =
    AdamW { learning_rate: 1e-3, beta1: 0.9, beta2: 0.95, epsilon: 1e-8, max_norm: 1.0, grad_scale: 1.0 };

/// The norm and the update; bf16 means with a copy of the new weights.
#[divan::bench(args = cases())]
fn adamw_step(bencher: Bencher, case: &Case) {
    let [mut weight, gradient, mut first] = [1, 2, 3].map(|stream| parameter(case, stream));
    let mut second = Tensor::zeros(weight.shape(), DType::F32, weight.device()).unwrap();
    let mut copy = (case.dtype == DType::Bf16).then(|| case.tensor(weight.shape(), 4));
    let [w, g] = [&weight, &gradient];
    let mut moved = vec![w, w, g, g, w, w, w, w];
    moved.extend(&copy);
    let mut state = State::new(100);
    bencher.counter(bytes(&moved)).bench_local(|| {
        let slot = Slot {
            weight: &mut weight,
            grad: &gradient,
            first_moment: &mut first,
            second_moment: &mut second,
            compute_copy: copy.as_mut(),
            weight_decay: 0.1,
        };
        adamw::step(&mut state, &SETTINGS, &mut [slot]).unwrap();
    });
}

#[divan::bench(args = f32_cases())]
fn sum_of_squares(bencher: Bencher, case: &Case) {
    let gradient = parameter(case, 1);
    bencher.counter(bytes(&[&gradient])).bench_local(|| reduce::sum_of_squares(&gradient).unwrap());
}

fn parameter(case: &Case, stream: u64) -> Tensor {
    normals(&[case.experts, 2 * case.hidden, case.d_model], stream, DType::F32)
}
