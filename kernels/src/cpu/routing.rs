//! Router scores, expert selection and row sums on the CPU: every row is one thread's work.

use crate::cpu::math;
use crate::cpu::parallel::{for_each, rows_per_block};
use crate::cpu::reduce::{LANES, lane_sum};
use crate::cpu::simd::vectorised;
use crate::error::Result;
use crate::tensor::Tensor;

pub(crate) fn softmax(logits_te: &Tensor, scores_te: &mut Tensor) -> Result<()> {
    let e = logits_te.last_dim();
    by_rows(
        [(logits_te.data()?, e)],
        (scores_te.data_mut()?, e),
        #[inline(always)]
        |[x], s| {
            let max = maximum(x);
            for (s, x) in s.iter_mut().zip(x) {
                *s = math::exp(x - max);
            }
            let sum: f32 = lane_sum(s, |s| s);
            for s in s {
                *s /= sum;
            }
        },
    );
    Ok(())
}

pub(crate) fn softmax_backward(ds_te: &Tensor, s_te: &Tensor, dx_te: &mut Tensor) -> Result<()> {
    let e = s_te.last_dim();
    by_rows(
        [(ds_te.data()?, e), (s_te.data()?, e)],
        (dx_te.data_mut()?, e),
        #[inline(always)]
        |[ds, s], dx| {
            for ((dx, ds), s) in dx.iter_mut().zip(ds).zip(s) {
                *dx = ds * s;
            }
            let dot: f32 = lane_sum(dx, |product| product);
            for ((dx, ds), s) in dx.iter_mut().zip(ds).zip(s) {
                *dx = s * (ds - dot);
            }
        },
    );
    Ok(())
}

pub(crate) fn sigmoid(logits_te: &Tensor, scores_te: &mut Tensor) -> Result<()> {
    let e = logits_te.last_dim();
    by_rows(
        [(logits_te.data()?, e)],
        (scores_te.data_mut()?, e),
        #[inline(always)]
        |[x], s| {
            for (s, &x) in s.iter_mut().zip(x) {
                *s = math::sigmoid(x);
            }
        },
    );
    Ok(())
}

pub(crate) fn sigmoid_backward(ds_te: &Tensor, s_te: &Tensor, dx_te: &mut Tensor) -> Result<()> {
    let e = s_te.last_dim();
    by_rows(
        [(ds_te.data()?, e), (s_te.data()?, e)],
        (dx_te.data_mut()?, e),
        #[inline(always)]
        |[ds, s], dx| {
            for ((dx, ds), s) in dx.iter_mut().zip(ds).zip(s) {
                *dx = ds * s * (1.0 - s);
            }
        },
    );
    Ok(())
}

/// k times the largest key of a row, each found in one pass that vectorises and then struck out.
pub(crate) fn top_k(scores_te: &Tensor, bias_e: Option<&Tensor>, indices_tk: &mut Tensor) -> Result<()> {
    let (e, k) = (scores_te.last_dim(), indices_tk.last_dim());
    let no_bias = vec![0.0; e];
    let bias = match bias_e {
        Some(bias_e) => bias_e.data::<f32>()?,
        None => &no_bias,
    };
    let rows = rows_per_block((e + k) * size_of::<f32>());
    let tasks =
        scores_te.data::<f32>()?.chunks(rows * e).zip(indices_tk.data_mut::<i32>()?.chunks_mut(rows * k));
    for_each(tasks, |(scores, indices)| {
        let mut keys = vec![STRUCK_OUT; e];
        vectorised(
            #[inline(always)]
            || {
                for (scores, indices) in scores.chunks_exact(e).zip(indices.chunks_exact_mut(k)) {
                    for (((key, score), bias), expert) in keys.iter_mut().zip(scores).zip(bias).zip(0u32..) {
                        *key = sort_key(score + bias, expert);
                    }
                    for index in indices {
                        let best = largest(&keys);
                        *index = expert_of(best);
                        keys[expert_of(best) as usize] = STRUCK_OUT;
                    }
                }
            },
        );
    });
    Ok(())
}

pub(crate) fn select(scores_te: &Tensor, indices_tk: &Tensor, weights_tk: &mut Tensor) -> Result<()> {
    let (e, k) = (scores_te.last_dim(), indices_tk.last_dim());
    let (scores, indices) = (scores_te.data::<f32>()?, indices_tk.data::<i32>()?);
    let weights = weights_tk.data_mut::<f32>()?;
    for (i, (weight, &index)) in weights.iter_mut().zip(indices).enumerate() {
        *weight = scores[i / k * e + index as usize];
    }
    Ok(())
}

pub(crate) fn select_backward(dw_tk: &Tensor, indices_tk: &Tensor, ds_te: &mut Tensor) -> Result<()> {
    let (e, k) = (ds_te.last_dim(), indices_tk.last_dim());
    let (dw, indices) = (dw_tk.data::<f32>()?, indices_tk.data::<i32>()?);
    let ds = ds_te.data_mut::<f32>()?;
    for (i, (dw, &index)) in dw.iter().zip(indices).enumerate() {
        ds[i / k * e + index as usize] += dw;
    }
    Ok(())
}

pub(crate) fn logsumexp(logits_te: &Tensor, lse_t: &mut Tensor) -> Result<()> {
    by_rows(
        [(logits_te.data()?, logits_te.last_dim())],
        (lse_t.data_mut()?, 1),
        #[inline(always)]
        |[x], lse| {
            let max = maximum(x);
            lse[0] = max + lane_sum(x, |x: f32| math::exp(x - max)).ln();
        },
    );
    Ok(())
}

pub(crate) fn logsumexp_backward(
    dlse_t: &Tensor,
    logits_te: &Tensor,
    lse_t: &Tensor,
    dx_te: &mut Tensor,
) -> Result<()> {
    let e = logits_te.last_dim();
    by_rows(
        [(logits_te.data()?, e), (lse_t.data()?, 1), (dlse_t.data()?, 1)],
        (dx_te.data_mut()?, e),
        #[inline(always)]
        |[x, lse, dlse], dx| {
            let (lse, dlse) = (lse[0], dlse[0]);
            for (dx, x) in dx.iter_mut().zip(x) {
                *dx += dlse * math::exp(x - lse);
            }
        },
    );
    Ok(())
}

pub(crate) fn entropy(scores_te: &Tensor, entropy_t: &mut Tensor) -> Result<()> {
    by_rows(
        [(scores_te.data()?, scores_te.last_dim())],
        (entropy_t.data_mut()?, 1),
        #[inline(always)]
        |[scores], entropy| {
            let total: f32 = lane_sum(scores, |s| s);
            // 0·ln 0 counts as 0; NaN is not 0 and stays.
            let term = |s: f32| if s == 0.0 { 0.0 } else { s * (s / total).ln() };
            entropy[0] = -scores.iter().map(|&s| term(s)).sum::<f32>() / total;
        },
    );
    Ok(())
}

/// Gives `body`, an `#[inline(always)]` closure, the rows of the same number from each input and from the output;
/// they come with their widths. A row is never split, so the bits do not depend on the number of threads.
fn by_rows<const N: usize>(
    inputs: [(&[f32], usize); N],
    (out, out_width): (&mut [f32], usize),
    body: impl Fn([&[f32]; N], &mut [f32]) + Send + Sync,
) {
    if out.is_empty() {
        return;
    }
    let width = out_width + inputs.iter().map(|(_, width)| width).sum::<usize>();
    let rows = rows_per_block(width * size_of::<f32>());
    for_each(out.chunks_mut(rows * out_width).enumerate(), |(block, out)| {
        vectorised(
            #[inline(always)]
            || {
                for (row, out) in out.chunks_exact_mut(out_width).enumerate() {
                    body(inputs.map(|(x, width)| &x[(block * rows + row) * width..][..width]), out);
                }
            },
        );
    });
}

/// The largest number; NaN is passed over here and comes back through the exponentials.
#[inline(always)]
fn maximum(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, x);
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, larger)
}

/// Below the key of every expert.
const STRUCK_OUT: u64 = 0;

/// A key that sorts as top-k does: by value with NaN below all numbers, then lower experts above higher ones.
#[inline(always)]
fn sort_key(value: f32, expert: u32) -> u64 {
    // -0 becomes 0, as the two are equal.
    let bits = (value + 0.0).to_bits();
    // Negative floats rise as their bits fall; the sign bit then lifts the positive ones above them.
    let rising = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    let rising = if value.is_nan() { 0 } else { rising };
    u64::from(rising) << 32 | u64::from(u32::MAX - expert)
}

#[inline(always)]
fn expert_of(key: u64) -> i32 {
    (u32::MAX - key as u32) as i32
}

#[inline(always)]
fn largest(keys: &[u64]) -> u64 {
    keys.iter().copied().fold(STRUCK_OUT, u64::max)
}

#[cfg(test)]
mod tests;
