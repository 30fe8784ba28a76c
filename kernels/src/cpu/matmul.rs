//! Matrix multiplication on the CPU.

use rayon::prelude::*;

use crate::dtype::{DType, bf16};
use crate::error::Result;
use crate::tensor::Tensor;

pub(crate) fn forward(x_ti: &Tensor, w_oi: &Tensor, y_to: &mut Tensor) -> Result<()> {
    let (x, w) = (x_ti.to_f32_vec()?, w_oi.to_f32_vec()?);
    let (o, i) = (w_oi.shape()[0], w_oi.last_dim());
    store(y_to, o, false, |t, out| {
        for (o, y) in out.iter_mut().enumerate() {
            *y = dot(&x[t * i..][..i], &w[o * i..][..i]);
        }
    })
}

pub(crate) fn backward_input(dy_to: &Tensor, w_oi: &Tensor, dx_ti: &mut Tensor, accumulate: bool) -> Result<()> {
    let (dy, w) = (dy_to.to_f32_vec()?, w_oi.to_f32_vec()?);
    let (o, i) = (w_oi.shape()[0], w_oi.last_dim());
    store(dx_ti, i, accumulate, |t, out| {
        out.fill(0.0);
        for (o, &scale) in dy[t * o..][..o].iter().enumerate() {
            axpy(scale, &w[o * i..][..i], out);
        }
    })
}

pub(crate) fn backward_weight(dy_to: &Tensor, x_ti: &Tensor, dw_oi: &mut Tensor) -> Result<()> {
    let (dy, x) = (dy_to.to_f32_vec()?, x_ti.to_f32_vec()?);
    let (o, i, rows) = (dy_to.last_dim(), x_ti.last_dim(), dy_to.num_rows());
    dw_oi.data_mut::<f32>()?.par_chunks_mut(i).enumerate().for_each(|(out, dw)| {
        for t in 0..rows {
            axpy(dy[t * o + out], &x[t * i..][..i], dw);
        }
    });
    Ok(())
}

/// Fills each row of `y` from f32 values that `row` computes.
pub(crate) fn store(
    y: &mut Tensor,
    width: usize,
    accumulate: bool,
    row: impl Fn(usize, &mut [f32]) + Sync,
) -> Result<()> {
    if width == 0 {
        return Ok(());
    }
    match y.dtype() {
        DType::Bf16 => y.data_mut::<bf16>()?.par_chunks_mut(width).enumerate().for_each(|(t, out)| {
            let mut values = vec![0.0; width];
            row(t, &mut values);
            for (out, value) in out.iter_mut().zip(values) {
                let before = if accumulate { out.to_f32() } else { 0.0 };
                *out = bf16::from_f32(before + value);
            }
        }),
        _ => y.data_mut::<f32>()?.par_chunks_mut(width).enumerate().for_each(|(t, out)| {
            let mut values = vec![0.0; width];
            row(t, &mut values);
            for (out, value) in out.iter_mut().zip(values) {
                *out = if accumulate { *out + value } else { value };
            }
        }),
    }
    Ok(())
}

pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(crate) fn axpy(scale: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += scale * x;
    }
}
