//! Matrix products on the CPU: C = A·B or C += A·B, with f32 sums from f32 or bf16 operands.
//!
//! A product is cut into tasks, each a block of C with its whole sum over K. For one block of K after the other, a
//! task packs its part of B (kept in L2), then packs one panel of A after the other (kept in L1) and lets the register
//! kernel run over the panels of B. Where the cuts lie depends on the shapes alone, and each element of C is summed by
//! one task in the order of K, so the bits are the same for any number of threads.

mod kernel;
#[cfg(target_arch = "x86_64")]
mod kernel_avx2;
#[cfg(target_arch = "x86_64")]
mod kernel_avx512;
#[cfg(target_arch = "x86_64")]
mod kernel_bf16;
mod kernel_portable;
mod matrix;
mod pack;
mod scratch;
mod transpose;

use std::ops::Range;

use rayon::prelude::*;

pub use kernel::bf16_is_fast;
pub(crate) use matrix::{Matrix, MatrixMut, Values, ValuesMut};

use kernel::{Kernel, Out, OutPtr, Panels};
use pack::{CHUNK, Lines};
use scratch::{Scratch, Units};

/// One product: A (m × k), B (k × n) and the result C (m × n).
pub(crate) struct Product<'a> {
    pub(crate) a: Matrix<'a>,
    pub(crate) b: Matrix<'a>,
    pub(crate) c: MatrixMut<'a>,
}

/// All products at once on all threads; the operands of all have the same dtypes.
///
/// # Panics
/// When the shapes do not fit: a mistake of the calling kernel.
pub(crate) fn gemm_parallel(products: &mut [Product], accumulate: bool) {
    let Some(first) = products.first() else { return };
    let kernel = kernel::choose(first.a.values, first.b.values);
    gemm_parallel_with(&kernel, products, accumulate);
}

fn gemm_parallel_with(kernel: &Kernel, products: &mut [Product], accumulate: bool) {
    let mut plan = Plan::new(kernel, products, accumulate);
    let tasks = plan.take_tasks();
    // One job for each task: a thread that is done takes the next from wherever it is.
    tasks.par_iter().with_max_len(1).for_each(|task| plan.run(task));
}

/// Products made ready to be computed block by block.
struct Plan<'a> {
    kernel: &'a Kernel,
    accumulate: bool,
    products: Vec<Source<'a>>,
    tasks: Vec<Task>,
}

/// A block of one product's C.
struct Task {
    product: usize,
    rows: Range<usize>,
    cols: Range<usize>,
}

/// A product as the tasks see it.
struct Source<'a> {
    a: Lines<'a>,
    b: Lines<'a>,
    /// Length of the sums.
    k: usize,
    c: OutPtr,
    c_stride: usize,
}

// SAFETY: the pointer to C comes from an exclusive borrow that outlives the plan, and tasks write disjoint blocks.
unsafe impl Sync for Source<'_> {}

/// Elements along K in one block: a panel of A of this length stays in L1 beside what streams through.
const K_BLOCK: usize = 256;
/// Columns of C in one task: with K_BLOCK, a block of B takes at most half a mebibyte of L2.
const COL_BLOCK: usize = 512;
/// Panels of A packed at once where K is not the inner dimension.
const A_GROUP: usize = 10;
/// Rows of C in one task: what packing a block of B is spread over.
const ROW_BLOCK: usize = 256;

impl<'a> Plan<'a> {
    fn new(kernel: &'a Kernel, products: &'a mut [Product], accumulate: bool) -> Self {
        let mut plan = Plan { kernel, accumulate, products: Vec::new(), tasks: Vec::new() };
        for Product { a, b, c } in products {
            let (m, n, k) = (c.rows, c.cols, a.cols());
            assert!(
                a.rows() == m && b.rows() == k && b.cols() == n,
                "({} x {k}) * ({} x {}) into {m} x {n}",
                a.rows(),
                b.rows(),
                b.cols()
            );
            if k == 0 && !accumulate {
                c.fill_zero();
            }
            if m * n * k == 0 {
                continue;
            }
            for rows in cut(0..m, ROW_BLOCK, 1) {
                for cols in cut(0..n, COL_BLOCK, kernel.cols) {
                    plan.tasks.push(Task { product: plan.products.len(), rows: rows.clone(), cols });
                }
            }
            plan.products.push(Source {
                a: Lines::rows(a, kernel.pairs),
                b: Lines::cols(b, kernel.pairs),
                k,
                c_stride: c.stride,
                c: match &mut c.values {
                    ValuesMut::F32(values) => OutPtr::F32(values.as_mut_ptr()),
                    ValuesMut::Bf16(values) => OutPtr::Bf16(values.as_mut_ptr()),
                },
            });
        }
        plan
    }

    fn take_tasks(&mut self) -> Vec<Task> {
        std::mem::take(&mut self.tasks)
    }

    /// Computes one block of C.
    fn run(&self, task: &Task) {
        let source = &self.products[task.product];
        // SAFETY: the task's blocks lie inside C.
        let c = unsafe { source.c.add(task.rows.start * source.c_stride + task.cols.start) };
        let out = Out { to: c, stride: source.c_stride, cols: 0, accumulate: self.accumulate };
        Scratch::with(|Scratch { a, b, c: sums }| match out.to {
            OutPtr::Bf16(_) if source.k > K_BLOCK => {
                // The sums of all blocks of K are kept in f32 and rounded once.
                let width = task.cols.len();
                sums.resize(task.rows.len() * width, 0.0);
                let to = OutPtr::F32(sums.as_mut_ptr());
                self.sum(source, task, Out { to, stride: width, cols: 0, accumulate: false }, a, b);
                for (row, sums) in sums.chunks_exact(width).enumerate() {
                    // SAFETY: the row lies inside this task's block of C.
                    unsafe { kernel::write_sums(sums, out.to.add(row * out.stride), out.accumulate) };
                }
            }
            _ => self.sum(source, task, out, a, b),
        });
    }

    /// Sums one block of C over all of K into `out`.
    fn sum(&self, source: &Source, task: &Task, out: Out, a: &mut Units, b: &mut Units) {
        let kernel = self.kernel;
        let mut accumulate = out.accumulate;
        for ks in cut(0..source.k, K_BLOCK, CHUNK) {
            let k = if kernel.pairs { ks.len().div_ceil(2) } else { ks.len() };
            let b_len = k * kernel.cols;
            let b_panels = cut(task.cols.clone(), kernel.cols, kernel.cols);
            let b = b.take(task.cols.len().div_ceil(kernel.cols) * b_len);
            source.b.pack_line_inner(b_panels.clone(), kernel.cols, &ks, b);
            // K-inner rows are packed just before their use, to be read from L1; others by a few panels, for the sake
            // of reading memory along its rows.
            let (a_len, group) = match source.a.k_inner {
                true => (k.next_multiple_of(CHUNK) * kernel.rows, kernel.rows),
                false => (k * kernel.a_width, kernel.rows * A_GROUP),
            };
            for rows in cut(task.rows.clone(), group, 1) {
                let a_panels = cut(rows.clone(), kernel.rows, 1);
                let a = a.take(rows.len().div_ceil(kernel.rows) * a_len);
                match source.a.k_inner {
                    true => source.a.pack_k_inner(&rows, &ks, a),
                    false => source.a.pack_line_inner(a_panels.clone(), kernel.a_width, &ks, a),
                }
                for (rows, a) in a_panels.zip(a.chunks_exact(a_len)) {
                    for (cols, b) in b_panels.clone().zip(b.chunks_exact(b_len)) {
                        let panels = Panels {
                            a: a.as_ptr(),
                            b: b.as_ptr(),
                            k,
                            rows: rows.len(),
                            k_inner: source.a.k_inner,
                        };
                        let offset =
                            (rows.start - task.rows.start) * out.stride + cols.start - task.cols.start;
                        // SAFETY: the kernel was chosen for this processor; the panels were packed just now for it;
                        // the tile lies inside the block that `out` stands for, which only this task writes.
                        unsafe {
                            let to = out.to.add(offset);
                            (kernel.run)(panels, Out { to, cols: cols.len(), accumulate, ..out });
                        }
                    }
                }
            }
            accumulate = true;
        }
    }
}

/// Cuts a range into the fewest parts of at most `max`, nearly equal, each but the last a multiple of `unit`.
fn cut(range: Range<usize>, max: usize, unit: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let parts = range.len().div_ceil(max);
    let units = range.len().div_ceil(unit);
    (0..parts).map(move |part| {
        let edge = |part: usize| (range.start + units * part / parts * unit).min(range.end);
        edge(part)..edge(part + 1)
    })
}

#[cfg(test)]
mod tests;
