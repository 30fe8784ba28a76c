//! Router scores, expert selection and row sums on the CPU: every row is one thread's work.

use crate::cpu::math;
use crate::cpu::parallel::{for_each, rows_per_block};
use crate::cpu::simd::vectorised;
use crate::error::Result;
use crate::tensor::Tensor;

pub(crate) fn softmax(logits_te: &Tensor, scores_te: &mut Tensor) -> Result<()> {
    let e = logits_te.last_dim();
    by_rows([(logits_te.data()?, e)], (scores_te.data_mut()?, e), |[x], s| vectorised(|| softmax_row(x, s)));
    Ok(())
}

pub(crate) fn softmax_backward(ds_te: &Tensor, s_te: &Tensor, dx_te: &mut Tensor) -> Result<()> {
    let e = s_te.last_dim();
    by_rows([(ds_te.data()?, e), (s_te.data()?, e)], (dx_te.data_mut()?, e), |[ds, s], dx| {
        let dot: f32 = ds.iter().zip(s).map(|(ds, s)| ds * s).sum();
        for ((dx, ds), s) in dx.iter_mut().zip(ds).zip(s) {
            *dx = s * (ds - dot);
        }
    });
    Ok(())
}

pub(crate) fn sigmoid(logits_te: &Tensor, scores_te: &mut Tensor) -> Result<()> {
    let e = logits_te.last_dim();
    by_rows([(logits_te.data()?, e)], (scores_te.data_mut()?, e), |[x], s| vectorised(|| sigmoid_row(x, s)));
    Ok(())
}

pub(crate) fn sigmoid_backward(ds_te: &Tensor, s_te: &Tensor, dx_te: &mut Tensor) -> Result<()> {
    let e = s_te.last_dim();
    by_rows([(ds_te.data()?, e), (s_te.data()?, e)], (dx_te.data_mut()?, e), |[ds, s], dx| {
        for ((dx, ds), s) in dx.iter_mut().zip(ds).zip(s) {
            *dx = ds * s * (1.0 - s);
        }
    });
    Ok(())
}

pub(crate) fn top_k(scores_te: &Tensor, bias_e: Option<&Tensor>, indices_tk: &mut Tensor) -> Result<()> {
    let (e, k) = (scores_te.last_dim(), indices_tk.last_dim());
    let bias = bias_e.map(Tensor::data::<f32>).transpose()?;
    by_rows([(scores_te.data()?, e)], (indices_tk.data_mut()?, k), |[scores], indices| {
        top_k_row(scores, bias, indices);
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
    by_rows([(logits_te.data()?, logits_te.last_dim())], (lse_t.data_mut()?, 1), |[x], lse| {
        let max = maximum(x);
        lse[0] = max + vectorised(|| sum_of_exp(x, max)).ln();
    });
    Ok(())
}

pub(crate) fn logsumexp_backward(
    dlse_t: &Tensor,
    logits_te: &Tensor,
    lse_t: &Tensor,
    dx_te: &mut Tensor,
) -> Result<()> {
    let e = logits_te.last_dim();
    let inputs = [(logits_te.data()?, e), (lse_t.data()?, 1), (dlse_t.data()?, 1)];
    by_rows(inputs, (dx_te.data_mut()?, e), |[x, lse, dlse], dx| {
        vectorised(|| add_scaled_exp(x, lse[0], dlse[0], dx));
    });
    Ok(())
}

pub(crate) fn entropy(scores_te: &Tensor, entropy_t: &mut Tensor) -> Result<()> {
    by_rows([(scores_te.data()?, scores_te.last_dim())], (entropy_t.data_mut()?, 1), |[scores], entropy| {
        let total: f32 = scores.iter().sum();
        // 0·ln 0 counts as 0; NaN is not 0 and stays.
        let term = |s: f32| if s == 0.0 { 0.0 } else { s * (s / total).ln() };
        entropy[0] = -scores.iter().map(|&s| term(s)).sum::<f32>() / total;
    });
    Ok(())
}

/// Gives `body` the rows of the same number from each input and from the output; inputs and output come with their
/// width. A row is never split, so the bits do not depend on the number of threads.
fn by_rows<const N: usize, T: Send>(
    inputs: [(&[f32], usize); N],
    (out, out_width): (&mut [T], usize),
    body: impl Fn([&[f32]; N], &mut [T]) + Send + Sync,
) {
    if out.is_empty() {
        return;
    }
    let width = out_width + inputs.iter().map(|(_, width)| width).sum::<usize>();
    let block = rows_per_block(width * size_of::<f32>());
    for_each(out.chunks_mut(block * out_width).enumerate(), |(i, out)| {
        for (r, out) in out.chunks_exact_mut(out_width).enumerate() {
            body(inputs.map(|(values, width)| &values[(i * block + r) * width..][..width]), out);
        }
    });
}

#[inline(always)]
fn softmax_row(x: &[f32], s: &mut [f32]) {
    let max = maximum(x);
    for (s, x) in s.iter_mut().zip(x) {
        *s = math::exp(x - max);
    }
    let sum: f32 = s.iter().sum();
    for s in s {
        *s /= sum;
    }
}

#[inline(always)]
fn sigmoid_row(x: &[f32], s: &mut [f32]) {
    for (s, &x) in s.iter_mut().zip(x) {
        *s = math::sigmoid(x);
    }
}

#[inline(always)]
fn sum_of_exp(x: &[f32], max: f32) -> f32 {
    x.iter().map(|x| math::exp(x - max)).sum()
}

#[inline(always)]
fn add_scaled_exp(x: &[f32], lse: f32, scale: f32, dx: &mut [f32]) {
    for (dx, x) in dx.iter_mut().zip(x) {
        *dx += scale * math::exp(x - lse);
    }
}

/// The largest number; NaN is passed over here and comes back through the exponentials.
fn maximum(x: &[f32]) -> f32 {
    x.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Insertion into a short list that stays sorted: k is small, and most experts fail against its last entry.
fn top_k_row(scores: &[f32], bias: Option<&[f32]>, indices: &mut [i32]) {
    let key = |expert: i32| {
        let expert = expert as usize;
        scores[expert] + bias.map_or(0.0, |bias| bias[expert])
    };
    for expert in 0..scores.len() {
        let filled = expert.min(indices.len());
        let (expert, own) = (expert as i32, key(expert as i32));
        // Experts come in rising order, so a tie leaves the lower index in front.
        let place = filled - indices[..filled].iter().rev().take_while(|&&other| precedes(own, key(other))).count();
        if place < indices.len() {
            indices[place..].rotate_right(1);
            indices[place] = expert;
        }
    }
}

fn precedes(a: f32, b: f32) -> bool {
    a > b || (b.is_nan() && !a.is_nan())
}
