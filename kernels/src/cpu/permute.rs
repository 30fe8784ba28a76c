//! Row gather and gather-sum on the CPU.

use crate::cpu::float::Float;
use crate::cpu::parallel::{for_each, rows_per_block};
use crate::cpu::simd::vectorised;
use crate::dtype::{DType, bf16};
use crate::error::Result;
use crate::tensor::Tensor;

pub(crate) fn gather(x_td: &Tensor, rows_r: &Tensor, x_rd: &mut Tensor) -> Result<()> {
    let rows = rows_r.data::<i32>()?;
    match x_td.dtype() {
        DType::Bf16 => gather_rows::<bf16>(x_td.data()?, rows, x_td.last_dim(), x_rd.data_mut()?),
        _ => gather_rows::<f32>(x_td.data()?, rows, x_td.last_dim(), x_rd.data_mut()?),
    }
    Ok(())
}

pub(crate) fn gather_sum(y_rd: &Tensor, token_rows_tk: &Tensor, out_td: &mut Tensor) -> Result<()> {
    let (token_rows, k) = (token_rows_tk.data::<i32>()?, token_rows_tk.last_dim());
    match y_rd.dtype() {
        DType::Bf16 => sum_rows::<bf16>(y_rd.data()?, token_rows, k, y_rd.last_dim(), out_td.data_mut()?),
        _ => sum_rows::<f32>(y_rd.data()?, token_rows, k, y_rd.last_dim(), out_td.data_mut()?),
    }
    Ok(())
}

fn gather_rows<T: Float>(x: &[T], rows: &[i32], d: usize, out: &mut [T]) {
    if out.is_empty() {
        return;
    }
    let block = rows_per_block(2 * d * size_of::<T>());
    for_each(rows.chunks(block).zip(out.chunks_mut(block * d)), |(rows, out)| {
        for (&row, out) in rows.iter().zip(out.chunks_exact_mut(d)) {
            match usize::try_from(row) {
                Ok(row) => out.copy_from_slice(&x[row * d..][..d]),
                Err(_) => out.fill(T::store(0.0)),
            }
        }
    });
}

fn sum_rows<T: Float>(y: &[T], token_rows: &[i32], k: usize, d: usize, out: &mut [T]) {
    if out.is_empty() {
        return;
    }
    if k == 0 {
        out.fill(T::store(0.0));
        return;
    }
    let block = rows_per_block((k + 1) * d * size_of::<T>());
    for_each(token_rows.chunks(block * k).zip(out.chunks_mut(block * d)), |(token_rows, out)| {
        let mut sum = vec![0.0; d];
        vectorised(
            #[inline(always)]
            || {
                for (rows, out) in token_rows.chunks_exact(k).zip(out.chunks_exact_mut(d)) {
                    sum.fill(0.0);
                    for row in rows.iter().filter_map(|&row| usize::try_from(row).ok()) {
                        for (sum, value) in sum.iter_mut().zip(&y[row * d..][..d]) {
                            *sum += value.load();
                        }
                    }
                    for (out, &sum) in out.iter_mut().zip(&sum) {
                        *out = T::store(sum);
                    }
                }
            },
        );
    });
}
