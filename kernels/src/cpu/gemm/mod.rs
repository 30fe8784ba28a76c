//! Matrix products on the CPU: C = A·B or C += A·B, with f32 sums from f32 or bf16 operands.
//!
//! A product is cut into tasks, each a block of C with its whole sum over K (`plan`). For one block of K after the
//! other, a task packs its part of B, to be read from L2, then one panel of A after the other, to be read from L1, and
//! lets the register kernel run over the panels of B (`task`). A B that many tasks read is packed once for all. Where the cuts lie depends on the shapes alone, and each element
//! of C is summed by one task in the order of K, so the bits are the same for any number of threads.

mod kernel;
#[cfg(target_arch = "x86_64")]
mod kernel_avx2;
#[cfg(target_arch = "x86_64")]
mod kernel_avx512;
#[cfg(target_arch = "x86_64")]
mod kernel_bf16;
#[cfg(target_arch = "x86_64")]
mod kernel_fp16;
mod kernel_portable;
mod matrix;
mod pack;
#[cfg(target_arch = "x86_64")]
mod pack_fp16;
mod plan;
mod scratch;
mod task;
mod transpose;

use rayon::prelude::*;

use crate::error::Result;
use crate::pool::Buffer;

pub use kernel::bf16_is_fast;
pub(crate) use kernel::{Format, bf16_format};
pub(crate) use matrix::{Matrix, MatrixMut, Values, ValuesMut};

use kernel::Kernel;
use plan::Plan;

/// One product: A (m × k), B (k × n) and the result C (m × n).
pub(crate) struct Product<'a> {
    pub(crate) a: Matrix<'a>,
    pub(crate) b: Matrix<'a>,
    pub(crate) c: MatrixMut<'a>,
}

/// All products at once on all threads; the operands of all have the same dtypes.
///
/// # Errors
/// Out of memory.
///
/// # Panics
/// When the shapes do not fit: a mistake of the calling kernel.
pub(crate) fn gemm_parallel(products: &mut [Product], accumulate: bool) -> Result<()> {
    let Some(first) = products.first() else { return Ok(()) };
    let kernel = kernel::choose(first.a.values, first.b.values);
    gemm_parallel_with(&kernel, products, accumulate)
}

fn gemm_parallel_with(kernel: &Kernel, products: &mut [Product], accumulate: bool) -> Result<()> {
    let plan = Plan::new(kernel, products, accumulate);
    let mut buffer = Buffer::take(plan.shared_len * size_of::<u32>())?;
    // SAFETY: the buffer holds that many initialised bytes, aligned to cache lines, and nothing else points to it.
    let shared = unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast(), plan.shared_len) };
    plan.pack_shared(shared);
    // One job for each task: a thread that is done takes the next from wherever it is.
    plan.tasks.par_iter().with_max_len(1).for_each(|task| plan.run(task, shared));
    Ok(())
}

#[cfg(test)]
mod tests;
