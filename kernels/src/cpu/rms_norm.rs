//! Root-mean-square normalisation on the CPU: two passes over each row, the second from cache.

use super::float::Float;
use super::parallel;
use super::reduce::{LANES, fold, lane_sum};
use super::simd::vectorised;
use crate::dtype::{DType, bf16};
use crate::error::Result;
use crate::tensor::Tensor;

pub(crate) fn forward(x: &Tensor, w_d: &Tensor, eps: f32, y: &mut Tensor, rstd_t: &mut Tensor) -> Result<()> {
    let w = w_d.to_f32_vec()?;
    let rstd = rstd_t.data_mut()?;
    match x.dtype() {
        DType::Bf16 => forward_blocks::<bf16>(x.data()?, &w, eps, y.data_mut()?, rstd),
        _ => forward_blocks::<f32>(x.data()?, &w, eps, y.data_mut()?, rstd),
    }
    Ok(())
}

/// dx = gradient, or dx += gradient when `accumulate`; dw += gradient.
pub(crate) fn backward(
    dy: &Tensor,
    x: &Tensor,
    w_d: &Tensor,
    rstd_t: &Tensor,
    dw_d: &mut Tensor,
    dx: &mut Tensor,
    accumulate: bool,
) -> Result<()> {
    let w = w_d.to_f32_vec()?;
    let (rstd, dw) = (rstd_t.data()?, dw_d.data_mut()?);
    match x.dtype() {
        DType::Bf16 => {
            backward_blocks::<bf16>(dy.data()?, x.data()?, &w, rstd, dw, dx.data_mut()?, accumulate);
        }
        _ => backward_blocks::<f32>(dy.data()?, x.data()?, &w, rstd, dw, dx.data_mut()?, accumulate),
    }
    Ok(())
}

fn forward_blocks<T: Float>(x: &[T], w: &[f32], eps: f32, y: &mut [T], rstd: &mut [f32]) {
    let d = w.len();
    let rows = parallel::rows_per_block(2 * d * size_of::<T>());
    let tasks = x.chunks(rows * d).zip(y.chunks_mut(rows * d)).zip(rstd.chunks_mut(rows));
    parallel::for_each(tasks, |((x, y), rstd)| {
        vectorised(
            #[inline(always)]
            || {
                for ((x, y), rstd) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).zip(rstd) {
                    *rstd = 1.0 / (lane_sum(x, |x: T| x.load() * x.load()) / d as f32 + eps).sqrt();
                    for ((x, w), y) in x.iter().zip(w).zip(y) {
                        *y = T::store(x.load() * *rstd * w);
                    }
                }
            },
        );
    });
}

fn backward_blocks<T: Float>(
    dy: &[T],
    x: &[T],
    w: &[f32],
    rstd: &[f32],
    dw: &mut [f32],
    dx: &mut [T],
    accumulate: bool,
) {
    let d = w.len();
    let rows = parallel::rows_per_block(3 * d * size_of::<T>());
    let inputs = dy.chunks(rows * d).zip(x.chunks(rows * d)).zip(rstd.chunks(rows));
    let dw_blocks = parallel::map(inputs.zip(dx.chunks_mut(rows * d)), |(((dy, x), rstd), dx)| {
        let mut dw = vec![0.0; d];
        vectorised(
            #[inline(always)]
            || {
                let inputs = dy.chunks_exact(d).zip(x.chunks_exact(d)).zip(rstd);
                for (((dy, x), &rstd), dx) in inputs.zip(dx.chunks_exact_mut(d)) {
                    add_weight_gradient(dy, x, rstd, &mut dw);
                    // dx = rstd·dy·w - x·rstd³·mean(dy·w·x)
                    let pull = weighted_dot(dy, x, w) / d as f32 * (rstd * rstd * rstd);
                    for (((dy, x), w), dx) in dy.iter().zip(x).zip(w).zip(dx) {
                        let before = if accumulate { dx.load() } else { 0.0 };
                        *dx = T::store(before + (dy.load() * w * rstd - x.load() * pull));
                    }
                }
            },
        );
        dw
    });
    for block in dw_blocks {
        for (dw, block) in dw.iter_mut().zip(block) {
            *dw += block;
        }
    }
}

/// dw += dy·x·rstd.
#[inline(always)]
fn add_weight_gradient<T: Float>(dy: &[T], x: &[T], rstd: f32, dw: &mut [f32]) {
    for ((dy, x), dw) in dy.iter().zip(x).zip(dw) {
        *dw += dy.load() * x.load() * rstd;
    }
}

/// Σ dy·x·w.
#[inline(always)]
fn weighted_dot<T: Float>(dy: &[T], x: &[T], w: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let whole = dy.len() - dy.len() % LANES;
    let chunks = dy.chunks_exact(LANES).zip(x.chunks_exact(LANES)).zip(w.chunks_exact(LANES));
    for ((dy, x), w) in chunks {
        for (lane, ((dy, x), w)) in lanes.iter_mut().zip(dy.iter().zip(x).zip(w)) {
            *lane += dy.load() * w * x.load();
        }
    }
    let rest = dy[whole..].iter().zip(&x[whole..]).zip(&w[whole..]);
    for (lane, ((dy, x), w)) in lanes.iter_mut().zip(rest) {
        *lane += dy.load() * w * x.load();
    }
    fold(lanes)
}
