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

/// Writes dgate_up, and dweights where weights are given.
pub(crate) fn backward(
    dh_rf: &Tensor,
    gate_up_r2f: &Tensor,
    weights: Option<(&Tensor, &mut Tensor)>,
    dgate_up_r2f: &mut Tensor,
) -> Result<()> {
    let f = dh_rf.last_dim();
    let (weights, dweights) = match weights {
        Some((weights, dweights)) => (Some(weights.data()?), Some(dweights.data_mut()?)),
        None => (None, None),
    };
    match dh_rf.dtype() {
        DType::Bf16 => {
            let dgate_up = dgate_up_r2f.data_mut::<bf16>()?;
            backward_blocks(dh_rf.data()?, gate_up_r2f.data()?, weights, dgate_up, dweights, f);
        }
        _ => {
            let dgate_up = dgate_up_r2f.data_mut::<f32>()?;
            backward_blocks(dh_rf.data()?, gate_up_r2f.data()?, weights, dgate_up, dweights, f);
        }
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
        #[cfg(target_arch = "x86_64")]
        if swiglu_avx512::fits(f) {
            for (r, (gate_up, h)) in gate_up.chunks_exact(2 * f).zip(h.chunks_exact_mut(f)).enumerate() {
                let weight = weights.map_or(1.0, |weights| weights[block * rows + r]);
                // SAFETY: `fits` found what it needs.
                unsafe { swiglu_avx512::forward_row(gate_up.split_at(f), weight, h) };
            }
            return;
        }
        vectorised(
            #[inline(always)]
            || {
                let rows_in = gate_up.chunks_exact(2 * f).zip(h.chunks_exact_mut(f)).enumerate();
                for (r, (gate_up, h)) in rows_in {
                    let weight = weights.map_or(1.0, |weights| weights[block * rows + r]);
                    let (gate, up) = gate_up.split_at(f);
                    for ((gate, up), h) in gate.iter().zip(up).zip(h) {
                        *h = T::store(silu(gate.load()) * up.load() * weight);
                    }
                }
            },
        );
    });
}

fn backward_blocks<T: Float>(
    dh: &[T],
    gate_up: &[T],
    weights: Option<&[f32]>,
    dgate_up: &mut [T],
    dweights: Option<&mut [f32]>,
    f: usize,
) {
    if dh.is_empty() {
        return;
    }
    let rows = parallel::rows_per_block(5 * f * size_of::<T>());
    let inputs = dh.chunks(rows * f).zip(gate_up.chunks(rows * 2 * f)).zip(dgate_up.chunks_mut(rows * 2 * f));
    // Without weights every block gets an empty slice of dweights.
    let mut dweights = dweights.map(|dweights| dweights.chunks_mut(rows));
    let tasks = inputs.enumerate().map(|(block, slices)| {
        (block, slices, dweights.as_mut().and_then(Iterator::next).unwrap_or_default())
    });
    parallel::for_each(tasks, |(block, ((dh, gate_up), dgate_up), dweights)| {
        #[cfg(target_arch = "x86_64")]
        if swiglu_avx512::fits(f) {
            let slices = dh.chunks_exact(f).zip(gate_up.chunks_exact(2 * f));
            for (r, ((dh, gate_up), dgate_up)) in slices.zip(dgate_up.chunks_exact_mut(2 * f)).enumerate() {
                let weight = weights.map_or(1.0, |weights| weights[block * rows + r]);
                let (dgate, dup) = dgate_up.split_at_mut(f);
                // SAFETY: `fits` found what it needs.
                let dweight =
                    unsafe { swiglu_avx512::backward_row(dh, gate_up.split_at(f), weight, dgate, dup) };
                if let Some(to) = dweights.get_mut(r) {
                    *to = dweight;
                }
            }
            return;
        }
        let mut terms = vec![0.0; f];
        vectorised(
            #[inline(always)]
            || {
                let slices = dh.chunks_exact(f).zip(gate_up.chunks_exact(2 * f));
                for (r, ((dh, gate_up), dgate_up)) in slices.zip(dgate_up.chunks_exact_mut(2 * f)).enumerate()
                {
                    let weight = weights.map_or(1.0, |weights| weights[block * rows + r]);
                    let (dgate, dup) = dgate_up.split_at_mut(f);
                    backward_row(dh, gate_up.split_at(f), weight, dgate, dup, &mut terms);
                    if let Some(dweight) = dweights.get_mut(r) {
                        *dweight = lane_sum(&terms, |term| term);
                    }
                }
            },
        );
    });
}

/// Writes the gradients of gate and up, and into `terms` the products whose sum is the weight's gradient.
#[inline(always)]
fn backward_row<T: Float>(
    dh: &[T],
    (gate, up): (&[T], &[T]),
    weight: f32,
    dgate: &mut [T],
    dup: &mut [T],
    terms: &mut [f32],
) {
    let inputs = dh.iter().zip(gate).zip(up);
    for ((((dh, gate), up), terms), (dgate, dup)) in inputs.zip(terms).zip(dgate.iter_mut().zip(dup)) {
        let (dh, gate, up) = (dh.load(), gate.load(), up.load());
        let s = sigmoid(gate);
        let silu = gate * s;
        *dgate = T::store(dh * weight * up * (s + silu * (1.0 - s)));
        *dup = T::store(dh * weight * silu);
        *terms = dh * silu * up;
    }
}
