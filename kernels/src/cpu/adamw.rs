//! AdamW on the CPU: one pass that reads each value once and writes it once.

use super::float::Float;
use super::parallel;
use super::simd::vectorised;
use crate::dtype::{DType, bf16};
use crate::error::Result;
use crate::ops::adamw::{AdamW, Slot};

/// `grad_scale` is what the gradient is multiplied by, clipping included; `max_norm` is not looked at.
pub(crate) fn step(settings: &AdamW, step_number: u64, slot: &mut Slot) -> Result<()> {
    let factors = Factors::new(settings, slot.weight_decay, step_number);
    match slot.first_moment.dtype() {
        DType::Bf16 => step_with::<bf16>(&factors, slot),
        _ => step_with::<f32>(&factors, slot),
    }
}

/// With moments kept in `M`.
fn step_with<M: Float>(factors: &Factors, slot: &mut Slot) -> Result<()> {
    let block = parallel::rows_per_block(4 * size_of::<f32>() + size_of::<bf16>());
    let mut copies = match &mut slot.compute_copy {
        Some(copy) => Some(copy.data_mut::<bf16>()?.chunks_mut(block)),
        None => None,
    };
    let weights =
        slot.weight.data_mut::<f32>()?.chunks_mut(block).zip(slot.grad.data::<f32>()?.chunks(block));
    let moments = slot.first_moment.data_mut::<M>()?.chunks_mut(block);
    let moments = moments.zip(slot.second_moment.data_mut::<M>()?.chunks_mut(block));
    // Without a copy every block gets an empty slice.
    let tasks = weights
        .zip(moments)
        .map(|((w, g), (m, v))| (w, g, m, v, copies.as_mut().and_then(Iterator::next).unwrap_or_default()));
    parallel::for_each(tasks, |(w, g, m, v, copy)| {
        vectorised(
            #[inline(always)]
            || {
                if copy.is_empty() {
                    update(factors, w, g, m, v);
                } else {
                    update_and_copy(factors, w, g, m, v, copy);
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
    fn new(settings: &AdamW, weight_decay: f32, step_number: u64) -> Self {
        let correction = |beta: f32| 1.0 - f64::from(beta).powf(step_number as f64);
        let learning_rate = f64::from(settings.learning_rate);
        Factors {
            grad_scale: settings.grad_scale,
            beta1: settings.beta1,
            beta2: settings.beta2,
            one_minus_beta1: 1.0 - settings.beta1,
            one_minus_beta2: 1.0 - settings.beta2,
            keep: (1.0 - learning_rate * f64::from(weight_decay)) as f32,
            step_size: (learning_rate / correction(settings.beta1)) as f32,
            second_correction: correction(settings.beta2).sqrt().recip() as f32,
            epsilon: settings.epsilon,
        }
    }
}

#[inline(always)]
fn update<M: Float>(factors: &Factors, w: &mut [f32], g: &[f32], m: &mut [M], v: &mut [M]) {
    for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
        update_one(factors, w, *g, m, v);
    }
}

#[inline(always)]
fn update_and_copy<M: Float>(
    factors: &Factors,
    w: &mut [f32],
    g: &[f32],
    m: &mut [M],
    v: &mut [M],
    copy: &mut [bf16],
) {
    for ((((w, g), m), v), copy) in w.iter_mut().zip(g).zip(m).zip(v).zip(copy) {
        update_one(factors, w, *g, m, v);
        *copy = bf16::store(*w);
    }
}

#[inline(always)]
fn update_one<M: Float>(factors: &Factors, w: &mut f32, g: f32, m: &mut M, v: &mut M) {
    let g = g * factors.grad_scale;
    let first = factors.beta1 * m.load() + factors.one_minus_beta1 * g;
    let second = factors.beta2 * v.load() + factors.one_minus_beta2 * g * g;
    *m = M::store(first);
    *v = M::store(second);
    let divisor = second.sqrt() * factors.second_correction + factors.epsilon;
    *w = *w * factors.keep - factors.step_size * first / divisor;
}
