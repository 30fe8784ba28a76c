//! Steps against the f64 reference, clipping, skipped steps, bf16 moments, and equal bits for any number of threads.

use super::*;
use crate::ops::elementwise::cast;
use crate::reference;
use crate::testing::{assert_close, bits, in_pools, tensor, values};

const SETTINGS: AdamW =
    AdamW { learning_rate: 1e-2, beta1: 0.9, beta2: 0.95, epsilon: 1e-8, max_norm: 0.0, grad_scale: 0.5 };
const DECAY: f32 = 0.1;

/// A parameter with its gradient and state.
#[derive(Clone)]
struct Parameter {
    weight: Tensor,
    grad: Tensor,
    moments: [Tensor; 2],
    copy: Option<Tensor>,
}

impl Parameter {
    fn new(weight: &[f64], moments: DType, with_copy: bool) -> Self {
        let zeros = |dtype| Tensor::zeros(&[weight.len()], dtype, Device::Cpu).unwrap();
        Parameter {
            weight: tensor(weight, &[weight.len()], DType::F32),
            grad: zeros(DType::F32),
            moments: [zeros(moments), zeros(moments)],
            copy: with_copy.then(|| zeros(DType::Bf16)),
        }
    }

    fn slot(&mut self, weight_decay: f32) -> Slot<'_> {
        let [first_moment, second_moment] = &mut self.moments;
        let (weight, grad, compute_copy) = (&mut self.weight, &self.grad, self.copy.as_mut());
        Slot { weight, grad, first_moment, second_moment, compute_copy, weight_decay }
    }
}

/// One step of one parameter.
fn step_one(state: &mut State, settings: &AdamW, parameter: &mut Parameter, decay: f32) -> Update {
    step(state, settings, &mut [parameter.slot(decay)]).unwrap().read().unwrap()
}

fn rule(settings: &AdamW, clip: f64, weight_decay: f32) -> reference::adamw::AdamW {
    reference::adamw::AdamW {
        learning_rate: f64::from(settings.learning_rate),
        beta1: f64::from(settings.beta1),
        beta2: f64::from(settings.beta2),
        epsilon: f64::from(settings.epsilon),
        weight_decay: f64::from(weight_decay),
        grad_scale: clip * f64::from(settings.grad_scale),
    }
}

/// The parameter after three steps.
fn three_steps(n: usize, moments: DType, with_copy: bool) -> Parameter {
    let mut parameter = Parameter::new(&values(n, 1), moments, with_copy);
    let mut state = State::new(0);
    for number in 1..=3 {
        parameter.grad = tensor(&values(n, 1 + number), &[n], DType::F32);
        assert!(step_one(&mut state, &SETTINGS, &mut parameter, DECAY).applied);
    }
    assert_eq!(state.num_updates().unwrap(), 3);
    parameter
}

#[test]
fn three_steps_follow_the_reference() {
    for n in [0, 1, 15, 33, 20_001] {
        let (mut w, mut m, mut v) = (values(n, 1), vec![0.0; n], vec![0.0; n]);
        for number in 1..=3 {
            let grad = values(n, 1 + number);
            reference::adamw::step(&rule(&SETTINGS, 1.0, DECAY), number, &mut w, &grad, &mut m, &mut v);
        }
        for with_copy in [true, false] {
            let got = three_steps(n, DType::F32, with_copy);
            assert_close(&got.weight, &w, 1e-6);
            assert_close(&got.moments[0], &m, 1e-6);
            assert_close(&got.moments[1], &v, 1e-6);
            if let Some(copy) = &got.copy {
                assert_eq!(bits(copy), bits(&cast(&got.weight, DType::Bf16).unwrap()));
            }
            // Moments of 8 bits bend a step by a hundredth.
            let got = three_steps(n, DType::Bf16, with_copy);
            assert_close(&got.weight, &w, 1e-2 * f64::from(SETTINGS.learning_rate));
            assert_close(&got.moments[0], &m, 1.2e-2);
            assert_close(&got.moments[1], &v, 1.2e-2);
        }
    }
}

#[test]
fn moments_in_bf16_are_rounded_only_when_they_are_stored() {
    let run = |moments| {
        let mut parameter = Parameter::new(&values(100, 1), moments, false);
        parameter.grad = tensor(&values(100, 2), &[100], DType::F32);
        step_one(&mut State::new(0), &SETTINGS, &mut parameter, DECAY);
        parameter
    };
    let (wide, narrow) = (run(DType::F32), run(DType::Bf16));
    assert_eq!(bits(&wide.weight), bits(&narrow.weight));
    for (wide, narrow) in wide.moments.iter().zip(&narrow.moments) {
        assert_eq!(bits(&cast(wide, DType::Bf16).unwrap()), bits(narrow));
    }
}

/// Two parameters, [3, 0] and [0, 4, 12]: a norm of 13, halved by the scale.
#[test]
fn all_gradients_together_are_clipped_to_the_norm() {
    let grads = [vec![3.0, 0.0], vec![0.0, 4.0, 12.0]];
    for (max_norm, clip) in [(0.0, 1.0), (6.5, 1.0), (1.0, 1.0 / 6.5)] {
        let mut parameters = [2, 3].map(|n| Parameter::new(&values(n, 1), DType::F32, false));
        for (parameter, grad) in parameters.iter_mut().zip(&grads) {
            parameter.grad = tensor(grad, &[grad.len()], DType::F32);
        }
        let settings = AdamW { max_norm, ..SETTINGS };
        let [a, b] = &mut parameters;
        let slots = &mut [a.slot(DECAY), b.slot(0.0)];
        let update = step(&mut State::new(0), &settings, slots).unwrap().read().unwrap();
        assert_eq!(update, Update { gradient_norm: 6.5, applied: true });
        for ((parameter, grad), decay) in parameters.iter().zip(&grads).zip([DECAY, 0.0]) {
            let n = grad.len();
            let (mut w, mut m, mut v) = (values(n, 1), vec![0.0; n], vec![0.0; n]);
            reference::adamw::step(&rule(&settings, clip, decay), 1, &mut w, grad, &mut m, &mut v);
            assert_close(&parameter.weight, &w, 1e-6);
            assert_close(&parameter.moments[0], &m, 1e-6);
        }
    }
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing_and_is_no_update() {
    for spoiled in [f64::NAN, f64::INFINITY] {
        let mut good = Parameter::new(&values(5, 1), DType::F32, true);
        good.grad = tensor(&values(5, 2), &[5], DType::F32);
        let mut bad = Parameter::new(&values(2, 3), DType::F32, true);
        bad.grad = tensor(&[1.0, spoiled], &[2], DType::F32);
        let before = [good.clone(), bad.clone()];
        let mut state = State::new(7);
        let slots = &mut [good.slot(DECAY), bad.slot(DECAY)];
        let update = step(&mut state, &SETTINGS, slots).unwrap().read().unwrap();
        assert!(!update.applied && !update.gradient_norm.is_finite());
        assert_eq!(state.num_updates().unwrap(), 7);
        for (now, before) in [good, bad].iter().zip(&before) {
            assert_eq!(bits(&now.weight), bits(&before.weight));
            assert_eq!(now.moments.each_ref().map(bits), before.moments.each_ref().map(bits));
            assert_eq!(now.copy.as_ref().map(bits), before.copy.as_ref().map(bits));
        }
    }
}

#[test]
fn the_first_step_moves_each_weight_by_the_learning_rate() {
    let mut parameter = Parameter::new(&[0.0; 3], DType::F32, false);
    parameter.grad = tensor(&[3.0, -0.01, 250.0], &[3], DType::F32);
    step_one(&mut State::new(0), &SETTINGS, &mut parameter, 0.0);
    assert_close(&parameter.weight, &[-1e-2, 1e-2, -1e-2], 1e-5);
}

#[test]
fn decay_does_not_pass_through_the_moments() {
    let mut parameter = Parameter::new(&[2.0], DType::F32, false);
    step_one(&mut State::new(0), &SETTINGS, &mut parameter, DECAY);
    assert_close(&parameter.weight, &[2.0 * (1.0 - 1e-2 * 0.1)], 1e-7);
    assert_eq!(parameter.moments.each_ref().map(bits), [vec![0], vec![0]]);
}

#[test]
fn results_have_the_same_bits_for_any_thread_count() {
    for moments in [DType::F32, DType::Bf16] {
        in_pools(|| {
            let Parameter { weight, moments: [first, second], copy, .. } = three_steps(20_001, moments, true);
            [weight, first, second, copy.unwrap()].map(|tensor| bits(&tensor))
        });
    }
}

#[test]
fn arguments_that_do_not_fit_are_named() {
    let error = |settings: &AdamW, change: &dyn Fn(&mut Parameter)| {
        let mut parameter = Parameter::new(&[0.0; 4], DType::F32, false);
        change(&mut parameter);
        let slots = &mut [parameter.slot(DECAY)];
        step(&mut State::new(0), settings, slots).unwrap_err().to_string()
    };
    let zeros = |n, dtype| Tensor::zeros(&[n], dtype, Device::Cpu).unwrap();
    let as_it_is = |_: &mut Parameter| {};
    assert_eq!(
        error(&SETTINGS, &|p| p.grad = zeros(5, DType::F32)),
        "adamw: grad has shape [5], expected [4]"
    );
    assert_eq!(error(&SETTINGS, &|p| p.grad = zeros(4, DType::Bf16)), "adamw: grad is bf16, expected f32");
    assert_eq!(
        error(&SETTINGS, &|p| p.moments[1] = zeros(4, DType::Bf16)),
        "adamw: second_moment is bf16, expected f32"
    );
    assert_eq!(
        error(&SETTINGS, &|p| p.moments[0] = zeros(4, DType::I32)),
        "adamw: first_moment is i32, expected f32 or bf16"
    );
    assert_eq!(
        error(&SETTINGS, &|p| p.copy = Some(zeros(4, DType::F32))),
        "adamw: compute_copy is f32, expected bf16"
    );
    assert_eq!(
        error(&AdamW { beta2: 1.0, ..SETTINGS }, &as_it_is),
        "adamw: beta2 is 1, expected at least 0 and below 1"
    );
    assert_eq!(
        error(&AdamW { max_norm: -1.0, ..SETTINGS }, &as_it_is),
        "adamw: max_norm is -1, expected 0 (off) or more"
    );
}
