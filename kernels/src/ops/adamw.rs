//! One step of AdamW (Loshchilov and Hutter, arXiv:1711.05101): Adam with decoupled weight decay.
//!
//! With g = grad·grad_scale at step n: m = β1·m + (1 - β1)·g; v = β2·v + (1 - β2)·g²;
//! w = w·(1 - lr·decay) - lr·m̂ / (sqrt(v̂) + ε) with m̂ = m / (1 - β1ⁿ) and v̂ = v / (1 - β2ⁿ).
//! Shapes: any, the same for weight, grad and both moments (f32) and for the bf16 copy of the new weight.
//! Napkin: 28 bytes a parameter (w, m, v in and out, grad in), 30 with the copy; some 15 FLOPs; memory-bound.

use crate::cpu;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::check;
use crate::profile::{self, Work};
use crate::tensor::Tensor;

/// The settings of a step; the learning rate and the gradient's scale change from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Step size.
    pub learning_rate: f32,
    /// Decay of the first moment, in [0, 1).
    pub beta1: f32,
    /// Decay of the second moment, in [0, 1).
    pub beta2: f32,
    /// Keeps the divisor from zero.
    pub epsilon: f32,
    /// Share of the weight that a step of learning rate 1 removes.
    pub weight_decay: f32,
    /// Multiplies the gradient first: clipping and averaging cost no pass of their own.
    pub grad_scale: f32,
}

/// Updates weight and both moments in place, and writes the new weight into `compute_copy` in the same pass.
/// `step_number` counts from 1.
///
/// # Errors
/// Shapes or dtypes that do not fit; a decay outside [0, 1); step number 0; out of memory when a tensor is shared.
pub fn step(
    params: &AdamW,
    step_number: u64,
    weight: &mut Tensor,
    grad: &Tensor,
    first_moment: &mut Tensor,
    second_moment: &mut Tensor,
    compute_copy: Option<&mut Tensor>,
) -> Result<()> {
    const OP: &str = "adamw";
    check::dtype(OP, "weight", weight, DType::F32)?;
    for (what, tensor) in
        [("grad", grad), ("first_moment", &*first_moment), ("second_moment", &*second_moment)]
    {
        check::shape(OP, what, tensor, weight.shape())?;
        check::dtype(OP, what, tensor, DType::F32)?;
    }
    if let Some(copy) = &compute_copy {
        check::shape(OP, "compute_copy", copy, weight.shape())?;
        check::dtype(OP, "compute_copy", copy, DType::Bf16)?;
    }
    let refuse = |what, got: String, expected: &str| {
        Err(Error::Value { op: OP, what, got, expected: expected.to_owned() })
    };
    for (what, beta) in [("beta1", params.beta1), ("beta2", params.beta2)] {
        if !(0.0..1.0).contains(&beta) {
            return refuse(what, beta.to_string(), "at least 0 and below 1");
        }
    }
    if step_number == 0 {
        return refuse("step_number", step_number.to_string(), "a number from 1");
    }
    let copied = compute_copy.as_ref().map_or(0, |copy| copy.size_in_bytes());
    let _span = profile::span(OP, weight.dtype(), || Work::pass(7 * weight.size_in_bytes() + copied));
    match weight.device() {
        Device::Cpu => {
            cpu::adamw::step(params, step_number, weight, grad, first_moment, second_moment, compute_copy)
        }
        device @ Device::Cuda(_) => Err(Error::Unsupported { op: OP, device }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::elementwise::cast;
    use crate::reference;
    use crate::testing::{assert_close, bits, in_pools, tensor, values};

    const PARAMS: AdamW = AdamW {
        learning_rate: 1e-2,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        grad_scale: 0.5,
    };

    fn reference_params() -> reference::adamw::AdamW {
        reference::adamw::AdamW {
            learning_rate: f64::from(PARAMS.learning_rate),
            beta1: f64::from(PARAMS.beta1),
            beta2: f64::from(PARAMS.beta2),
            epsilon: f64::from(PARAMS.epsilon),
            weight_decay: f64::from(PARAMS.weight_decay),
            grad_scale: f64::from(PARAMS.grad_scale),
        }
    }

    /// Weight, first and second moment and the bf16 copy after three steps.
    fn three_steps(n: usize, with_copy: bool) -> [Tensor; 4] {
        let zeros = |dtype| Tensor::zeros(&[n], dtype, Device::Cpu).unwrap();
        let (mut m, mut v, mut copy) = (zeros(DType::F32), zeros(DType::F32), zeros(DType::Bf16));
        let mut w = tensor(&values(n, 1), &[n], DType::F32);
        for step_number in 1..=3 {
            let grad = tensor(&values(n, 1 + step_number), &[n], DType::F32);
            step(&PARAMS, step_number, &mut w, &grad, &mut m, &mut v, with_copy.then_some(&mut copy))
                .unwrap();
        }
        [w, m, v, copy]
    }

    #[test]
    fn three_steps_follow_the_reference() {
        for n in [0, 1, 15, 33, 20_001] {
            let (mut w, mut m, mut v) = (values(n, 1), vec![0.0; n], vec![0.0; n]);
            for step_number in 1..=3 {
                let grad = values(n, 1 + step_number);
                reference::adamw::step(&reference_params(), step_number, &mut w, &grad, &mut m, &mut v);
            }
            for with_copy in [true, false] {
                let [got_w, got_m, got_v, copy] = three_steps(n, with_copy);
                assert_close(&got_w, &w, 1e-6);
                assert_close(&got_m, &m, 1e-6);
                assert_close(&got_v, &v, 1e-6);
                let expected = if with_copy { cast(&got_w, DType::Bf16).unwrap() } else { copy.clone() };
                assert_eq!(bits(&copy), bits(&expected));
            }
        }
    }

    #[test]
    fn the_first_step_moves_each_weight_by_the_learning_rate() {
        let params = AdamW { weight_decay: 0.0, ..PARAMS };
        let grad = tensor(&[3.0, -0.01, 250.0], &[3], DType::F32);
        let [mut w, mut m, mut v] = [(); 3].map(|()| Tensor::zeros(&[3], DType::F32, Device::Cpu).unwrap());
        step(&params, 1, &mut w, &grad, &mut m, &mut v, None).unwrap();
        assert_close(&w, &[-1e-2, 1e-2, -1e-2], 1e-5);
    }

    #[test]
    fn decay_does_not_pass_through_the_moments() {
        let [grad, mut m, mut v] = [(); 3].map(|()| Tensor::zeros(&[1], DType::F32, Device::Cpu).unwrap());
        let mut w = tensor(&[2.0], &[1], DType::F32);
        step(&PARAMS, 1, &mut w, &grad, &mut m, &mut v, None).unwrap();
        assert_close(&w, &[2.0 * (1.0 - 1e-2 * 0.1)], 1e-7);
        assert_eq!((bits(&m), bits(&v)), (vec![0], vec![0]));
    }

    #[test]
    fn results_have_the_same_bits_for_any_thread_count() {
        in_pools(|| three_steps(20_001, true).map(|tensor| bits(&tensor)));
    }

    #[test]
    fn arguments_that_do_not_fit_are_named() {
        let zeros = |n, dtype| Tensor::zeros(&[n], dtype, Device::Cpu).unwrap();
        let error = |params: &AdamW, step_number, grad: &Tensor, copy: Option<&mut Tensor>| {
            let [mut w, mut m, mut v] = [(); 3].map(|()| zeros(4, DType::F32));
            step(params, step_number, &mut w, grad, &mut m, &mut v, copy).unwrap_err().to_string()
        };
        let grad = zeros(4, DType::F32);
        assert_eq!(error(&PARAMS, 1, &zeros(5, DType::F32), None), "adamw: grad has shape [5], expected [4]");
        assert_eq!(error(&PARAMS, 1, &zeros(4, DType::Bf16), None), "adamw: grad is bf16, expected f32");
        assert_eq!(
            error(&PARAMS, 1, &grad, Some(&mut zeros(4, DType::F32))),
            "adamw: compute_copy is f32, expected bf16"
        );
        assert_eq!(error(&PARAMS, 0, &grad, None), "adamw: step_number is 0, expected a number from 1");
        assert_eq!(
            error(&AdamW { beta2: 1.0, ..PARAMS }, 1, &grad, None),
            "adamw: beta2 is 1, expected at least 0 and below 1"
        );
    }
}
