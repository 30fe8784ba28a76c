//! SwiGLU on the CPU: one pass over each row.

use super::float::Float;
use super::math::{sigmoid, silu};
use super::parallel;
use super::reduce::lane_sum;
use super::simd::vectorised;
#[cfg(target_arch = "x86_64")]
use super::swiglu_avx512;
use crate::dtype::{DType, bf16};
use crate::error::Result;
use crate::tensor::Tensor;

pub(crate) fn forward(gate_up_r2f: &Tensor, weights_r: Option<&Tensor>, h_rf: &mut Tensor) -> Result<()> {
    let f = h_rf.last_dim();
    let weights = weights_r.map(|weights| weights.data::<f32>()).transpose()?;
    match h_rf.dtype() {
        DType::Bf16 => forward_blocks::<bf16>(gate_up_r2f.data()?, weights, h_rf.data_mut()?, f),
        _ => forward_blocks::<f32>(gate_up_r2f.data()?, weights, h_rf.data_mut()?, f),
    }
    Ok(())
}

/// Turns dh into h and gate_up into its gradient, and writes dweights where weights are given.
pub(crate) fn backward(
    dh_rf: &mut Tensor,
    gate_up_r2f: &mut Tensor,
    weights: Option<(&Tensor, &mut Tensor)>,
) -> Result<()> {
    let f = dh_rf.last_dim();
    let (weights, dweights) = match weights {
        Some((weights, dweights)) => (Some(weights.data()?), Some(dweights.data_mut()?)),
        None => (None, None),
    };
    match dh_rf.dtype() {
        DType::Bf16 => {
            backward_blocks::<bf16>(dh_rf.data_mut()?, gate_up_r2f.data_mut()?, weights, dweights, f);
        }
        _ => backward_blocks::<f32>(dh_rf.data_mut()?, gate_up_r2f.data_mut()?, weights, dweights, f),
    }
    Ok(())
}

fn forward_blocks<T: Float>(gate_up: &[T], weights: Option<&[f32]>, h: &mut [T], f: usize) {
    if h.is_empty() {
        return;
    }
    let rows = parallel::rows_per_block(3 * f * size_of::<T>());
    let tasks = gate_up.chunks(rows * 2 * f).zip(h.chunks_mut(rows * f)).enumerate();
    parallel::for_each(tasks, |(block, (gate_up, h))| {
        for (r, (gate_up, h)) in gate_up.chunks_exact(2 * f).zip(h.chunks_exact_mut(f)).enumerate() {
            let weight = weights.map_or(1.0, |weights| weights[block * rows + r]);
            forward_row(gate_up.split_at(f), weight, h);
        }
    });
}

fn backward_blocks<T: Float>(
    dh: &mut [T],
    gate_up: &mut [T],
    weights: Option<&[f32]>,
    dweights: Option<&mut [f32]>,
    f: usize,
) {
    if dh.is_empty() {
        return;
    }
    let rows = parallel::rows_per_block(3 * f * size_of::<T>());
    // Without weights every block gets an empty slice of dweights.
    let mut dweights = dweights.map(|dweights| dweights.chunks_mut(rows));
    let slices = dh.chunks_mut(rows * f).zip(gate_up.chunks_mut(rows * 2 * f)).enumerate();
    let tasks = slices.map(|(block, slices)| {
        (block, slices, dweights.as_mut().and_then(Iterator::next).unwrap_or_default())
    });
    parallel::for_each(tasks, |(block, (dh, gate_up), dweights)| {
        let mut terms = vec![0.0; f];
        for (r, (dh, gate_up)) in dh.chunks_exact_mut(f).zip(gate_up.chunks_exact_mut(2 * f)).enumerate() {
            let weight = weights.map_or(1.0, |weights| weights[block * rows + r]);
            let dweight = backward_row(dh, gate_up.split_at_mut(f), weight, &mut terms);
            if let Some(to) = dweights.get_mut(r) {
                *to = dweight;
            }
        }
    });
}

/// h = silu(gate)·up·weight.
fn forward_row<T: Float>((gate, up): (&[T], &[T]), weight: f32, h: &mut [T]) {
    #[cfg(target_arch = "x86_64")]
    if swiglu_avx512::fits(h.len()) {
        // SAFETY: `fits` found what it needs.
        return unsafe { swiglu_avx512::forward_row((gate, up), weight, h) };
    }
    vectorised(
        #[inline(always)]
        || {
            for ((gate, up), h) in gate.iter().zip(up).zip(h) {
                *h = T::store(silu(gate.load()) * up.load() * weight);
            }
        },
    );
}

/// Turns dh into h, gate and up into their gradients, and gives the weight's. `terms` is room for a row.
fn backward_row<T: Float>(
    dh: &mut [T],
    (gate, up): (&mut [T], &mut [T]),
    weight: f32,
    terms: &mut [f32],
) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if swiglu_avx512::fits(dh.len()) {
        // SAFETY: `fits` found what it needs.
        return unsafe { swiglu_avx512::backward_row(dh, (gate, up), weight) };
    }
    vectorised(
        #[inline(always)]
        || {
            backward_values(dh, gate, up, weight, terms);
            lane_sum(terms, |term| term)
        },
    )
}

/// As [`backward_row`], with the products whose sum is the weight's gradient in `terms`.
#[inline(always)]
fn backward_values<T: Float>(dh: &mut [T], gate: &mut [T], up: &mut [T], weight: f32, terms: &mut [f32]) {
    for (((dh, gate), up), term) in dh.iter_mut().zip(gate).zip(up).zip(terms) {
        let (dh_value, gate_value, up_value) = (dh.load(), gate.load(), up.load());
        let s = sigmoid(gate_value);
        let silu = gate_value * s;
        *term = dh_value * silu * up_value;
        *dh = T::store(silu * up_value * weight);
        *gate = T::store(dh_value * weight * up_value * (s + silu * (1.0 - s)));
        *up = T::store(dh_value * weight * silu);
    }
}
