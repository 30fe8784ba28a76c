//! Bias of a projection on the CPU.

use super::float::Float;
use super::parallel;
use super::simd::vectorised;
use crate::dtype::{DType, bf16};
use crate::error::Result;
use crate::tensor::Tensor;

/// Columns that one task sums: a few cache lines of each row, and their sums in registers or L1.
const COLUMNS: usize = 128;

pub(crate) fn forward(x: &mut Tensor, bias_n: &Tensor) -> Result<()> {
    match x.dtype() {
        DType::Bf16 => add_to_rows::<bf16>(x.data_mut()?, bias_n.data()?),
        _ => add_to_rows::<f32>(x.data_mut()?, bias_n.data()?),
    }
    Ok(())
}

pub(crate) fn backward(dy: &Tensor, dbias_n: &mut Tensor) -> Result<()> {
    match dy.dtype() {
        DType::Bf16 => sum_rows::<bf16>(dy.data()?, dbias_n.data_mut()?),
        _ => sum_rows::<f32>(dy.data()?, dbias_n.data_mut()?),
    }
    Ok(())
}

fn add_to_rows<T: Float>(x: &mut [T], bias: &[f32]) {
    if x.is_empty() {
        return;
    }
    let rows = parallel::rows_per_block(size_of_val(bias));
    parallel::for_each(x.chunks_mut(rows * bias.len()), |x| {
        vectorised(
            #[inline(always)]
            || {
                for row in x.chunks_exact_mut(bias.len()) {
                    for (x, bias) in row.iter_mut().zip(bias) {
                        *x = T::store(x.load() + bias);
                    }
                }
            },
        );
    });
}

fn sum_rows<T: Float>(dy: &[T], dbias: &mut [f32]) {
    let n = dbias.len();
    parallel::for_each(dbias.chunks_mut(COLUMNS).enumerate(), |(block, dbias)| {
        vectorised(
            #[inline(always)]
            || {
                for row in dy.chunks_exact(n) {
                    for (sum, dy) in dbias.iter_mut().zip(&row[block * COLUMNS..]) {
                        *sum += dy.load();
                    }
                }
            },
        );
    });
}
