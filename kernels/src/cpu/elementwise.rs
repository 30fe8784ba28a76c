//! Element by element on the CPU.

use super::float::Float;
use super::parallel;
use super::simd::vectorised;
use crate::dtype::{DType, bf16};
use crate::error::Result;
use crate::tensor::Tensor;

pub(crate) fn add(a: &Tensor, b: &Tensor, sum: &mut Tensor) -> Result<()> {
    match a.dtype() {
        DType::Bf16 => add_blocks::<bf16>(a.data()?, b.data()?, sum.data_mut()?),
        _ => add_blocks::<f32>(a.data()?, b.data()?, sum.data_mut()?),
    }
    Ok(())
}

pub(crate) fn add_assign(a: &mut Tensor, b: &Tensor) -> Result<()> {
    match a.dtype() {
        DType::Bf16 => combine::<bf16, bf16>(a.data_mut()?, b.data()?, |a, b| a + b),
        _ => combine::<f32, f32>(a.data_mut()?, b.data()?, |a, b| a + b),
    }
    Ok(())
}

pub(crate) fn scale_assign(a: &mut Tensor, factor: f32) -> Result<()> {
    match a.dtype() {
        DType::Bf16 => scale_blocks::<bf16>(a.data_mut()?, factor),
        _ => scale_blocks::<f32>(a.data_mut()?, factor),
    }
    Ok(())
}

pub(crate) fn cast_into(x: &Tensor, out: &mut Tensor) -> Result<()> {
    match (x.dtype(), out.dtype()) {
        (DType::Bf16, DType::Bf16) => combine::<bf16, bf16>(out.data_mut()?, x.data()?, |_, x| x),
        (DType::Bf16, _) => combine::<f32, bf16>(out.data_mut()?, x.data()?, |_, x| x),
        (_, DType::Bf16) => combine::<bf16, f32>(out.data_mut()?, x.data()?, |_, x| x),
        _ => combine::<f32, f32>(out.data_mut()?, x.data()?, |_, x| x),
    }
    Ok(())
}

fn add_blocks<T: Float>(a: &[T], b: &[T], sum: &mut [T]) {
    let block = parallel::rows_per_block(3 * size_of::<T>());
    parallel::for_each(a.chunks(block).zip(b.chunks(block)).zip(sum.chunks_mut(block)), |((a, b), sum)| {
        vectorised(
            #[inline(always)]
            || {
                for ((a, b), sum) in a.iter().zip(b).zip(sum) {
                    *sum = T::store(a.load() + b.load());
                }
            },
        );
    });
}

/// out = op(out, x).
fn combine<O: Float, X: Float>(out: &mut [O], x: &[X], op: impl Fn(f32, f32) -> f32 + Send + Sync) {
    let block = parallel::rows_per_block(size_of::<O>() + size_of::<X>());
    parallel::for_each(out.chunks_mut(block).zip(x.chunks(block)), |(out, x)| {
        vectorised(
            #[inline(always)]
            || {
                for (out, x) in out.iter_mut().zip(x) {
                    *out = O::store(op(out.load(), x.load()));
                }
            },
        );
    });
}

fn scale_blocks<T: Float>(a: &mut [T], factor: f32) {
    let block = parallel::rows_per_block(size_of::<T>());
    parallel::for_each(a.chunks_mut(block), |a| {
        vectorised(
            #[inline(always)]
            || {
                for a in a {
                    *a = T::store(a.load() * factor);
                }
            },
        );
    });
}
