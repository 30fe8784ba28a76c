//! Root-mean-square normalisation on the CPU: two passes over each row, the second from cache.

use super::float::Float;
use super::parallel;
use super::reduce::lane_sum;
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
                    let scale = 1.0 / (lane_sum(x, |x: T| x.load() * x.load()) / d as f32 + eps).sqrt();
                    for ((x, w), y) in x.iter().zip(w).zip(y) {
                        *y = T::store(x.load() * scale * w);
                    }
                    *rstd = scale;
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
        let (mut dw, mut terms) = (vec![0.0; d], vec![0.0; d]);
        vectorised(
            #[inline(always)]
            || {
                let inputs = dy.chunks_exact(d).zip(x.chunks_exact(d)).zip(rstd);
                for (((dy, x), &rstd), dx) in inputs.zip(dx.chunks_exact_mut(d)) {
                    weight_gradient(dy, x, rstd, w, &mut dw, &mut terms);
                    // dx = rstd·dy·w - x·rstd³·mean(dy·x·w)
                    let pull = lane_sum(&terms, |term| term) / d as f32 * (rstd * rstd * rstd);
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

/// dw += dy·x·rstd; terms = dy·x·w, whose sum the gradient of x needs.
#[inline(always)]
fn weight_gradient<T: Float>(dy: &[T], x: &[T], rstd: f32, w: &[f32], dw: &mut [f32], terms: &mut [f32]) {
    for ((((dy, x), w), dw), terms) in dy.iter().zip(x).zip(w).zip(dw).zip(terms) {
        let product = dy.load() * x.load();
        *dw += product * rstd;
        *terms = product * w;
    }
}
