//! AdamW on the CPU: one pass that reads each value once and writes it once.

use super::float::Float;
use super::parallel;
use super::simd::vectorised;
use crate::dtype::bf16;
use crate::error::Result;
use crate::ops::adamw::AdamW;
use crate::tensor::Tensor;

pub(crate) fn step(
    params: &AdamW,
    step_number: u64,
    weight: &mut Tensor,
    grad: &Tensor,
    first_moment: &mut Tensor,
    second_moment: &mut Tensor,
    compute_copy: Option<&mut Tensor>,
) -> Result<()> {
    let factors = Factors::new(params, step_number);
    let block = parallel::rows_per_block(4 * size_of::<f32>() + size_of::<bf16>());
    let mut copies = match compute_copy {
        Some(copy) => Some(copy.data_mut::<bf16>()?.chunks_mut(block)),
        None => None,
    };
    let weights = weight.data_mut::<f32>()?.chunks_mut(block).zip(grad.data::<f32>()?.chunks(block));
    let moments = first_moment.data_mut::<f32>()?.chunks_mut(block);
    let moments = moments.zip(second_moment.data_mut::<f32>()?.chunks_mut(block));
    // Without a copy every block gets an empty slice.
    let tasks = weights
        .zip(moments)
        .map(|((w, g), (m, v))| (w, g, m, v, copies.as_mut().and_then(Iterator::next).unwrap_or_default()));
    parallel::for_each(tasks, |(w, g, m, v, copy)| {
        vectorised(
            #[inline(always)]
            || {
                if copy.is_empty() {
                    update(&factors, w, g, m, v);
                } else {
                    update_and_copy(&factors, w, g, m, v, copy);
                }
            },
        );
    });
    Ok(())
}

/// What is the same for all elements of a step.
struct Factors {
    grad_scale: f32,
    beta1: f32,
    beta2: f32,
    one_minus_beta1: f32,
    one_minus_beta2: f32,
    /// 1 - learning_rate·weight_decay.
    keep: f32,
    /// learning_rate / (1 - beta1^step).
    step_size: f32,
    /// 1 / sqrt(1 - beta2^step).
    second_correction: f32,
    epsilon: f32,
}

impl Factors {
    fn new(params: &AdamW, step_number: u64) -> Self {
        let correction = |beta: f32| 1.0 - f64::from(beta).powf(step_number as f64);
        let learning_rate = f64::from(params.learning_rate);
        Factors {
            grad_scale: params.grad_scale,
            beta1: params.beta1,
            beta2: params.beta2,
            one_minus_beta1: 1.0 - params.beta1,
            one_minus_beta2: 1.0 - params.beta2,
            keep: (1.0 - learning_rate * f64::from(params.weight_decay)) as f32,
            step_size: (learning_rate / correction(params.beta1)) as f32,
            second_correction: correction(params.beta2).sqrt().recip() as f32,
            epsilon: params.epsilon,
        }
    }
}

#[inline(always)]
fn update(factors: &Factors, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
        update_one(factors, w, *g, m, v);
    }
}

#[inline(always)]
fn update_and_copy(
    factors: &Factors,
    w: &mut [f32],
    g: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    copy: &mut [bf16],
) {
    for ((((w, g), m), v), copy) in w.iter_mut().zip(g).zip(m).zip(v).zip(copy) {
        update_one(factors, w, *g, m, v);
        *copy = bf16::store(*w);
    }
}

#[inline(always)]
fn update_one(factors: &Factors, w: &mut f32, g: f32, m: &mut f32, v: &mut f32) {
    let g = g * factors.grad_scale;
    *m = factors.beta1 * *m + factors.one_minus_beta1 * g;
    *v = factors.beta2 * *v + factors.one_minus_beta2 * g * g;
    let divisor = v.sqrt() * factors.second_correction + factors.epsilon;
    *w = *w * factors.keep - factors.step_size * *m / divisor;
}
