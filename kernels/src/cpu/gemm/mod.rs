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

use crate::cpu::simd::vectorised;
use crate::error::Result;
use crate::pool::Buffer;

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

/// C = A·B, or C += A·B, on the calling thread: for small products inside other kernels.
///
/// # Panics
/// When the shapes do not fit: a mistake of the calling kernel.
pub(crate) fn gemm(a: Matrix, b: Matrix, c: MatrixMut, accumulate: bool) {
    let kernel = kernel::choose(a.values, b.values);
    let mut products = [Product { a, b, c }];
    let plan = Plan::new(&kernel, &mut products, accumulate);
    for task in &plan.tasks {
        plan.run(task, None);
    }
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
    plan.tasks.par_iter().with_max_len(1).for_each(|task| plan.run(task, Some(shared)));
    Ok(())
}

/// Products made ready to be computed block by block.
struct Plan<'a> {
    kernel: &'a Kernel,
    accumulate: bool,
    sources: Vec<Source<'a>>,
    tasks: Vec<Task>,
    /// Units of all B that are packed once for all tasks.
    shared_len: usize,
}

/// A product as the tasks see it.
struct Source<'a> {
    a: Lines<'a>,
    b: Lines<'a>,
    n: usize,
    k: usize,
    c: OutPtr,
    c_stride: usize,
    /// Where the packed B starts among the shared ones, as `[k block][panel][k][column]`.
    shared: Option<usize>,
}

// SAFETY: the pointer to C comes from an exclusive borrow that outlives the plan, and tasks write disjoint blocks.
unsafe impl Sync for Source<'_> {}

/// A block of one product's C.
struct Task {
    source: usize,
    rows: Range<usize>,
    cols: Range<usize>,
}

impl<'a> Plan<'a> {
    fn new<'m: 'a>(kernel: &'a Kernel, products: &'a mut [Product<'m>], accumulate: bool) -> Self {
        let mut plan = Plan { kernel, accumulate, sources: Vec::new(), tasks: Vec::new(), shared_len: 0 };
        for Product { a, b, c } in products {
            let (m, n, k) = (c.rows, c.cols, a.cols());
            let fits = a.rows() == m && b.rows() == k && b.cols() == n;
            assert!(fits, "({}x{k})·({}x{}) into {m}x{n}", a.rows(), b.rows(), b.cols());
            if k == 0 && !accumulate {
                c.fill_zero();
            }
            if m * n * k == 0 {
                continue;
            }
            let blocks = Blocks::of(m, n, k);
            for rows in cut(0..m, blocks.rows, 1) {
                for cols in cut(0..n, blocks.cols, kernel.cols) {
                    plan.tasks.push(Task { source: plan.sources.len(), rows: rows.clone(), cols });
                }
            }
            let shared = blocks.share_b.then_some(plan.shared_len);
            if blocks.share_b {
                plan.shared_len += n.next_multiple_of(kernel.cols) * kernel.units(k);
            }
            plan.sources.push(Source {
                a: Lines::rows(a, kernel.pairs),
                b: Lines::cols(b, kernel.pairs),
                n,
                k,
                c_stride: c.stride,
                c: match &mut c.values {
                    ValuesMut::F32(values) => OutPtr::F32(values.as_mut_ptr()),
                    ValuesMut::Bf16(values) => OutPtr::Bf16(values.as_mut_ptr()),
                },
                shared,
            });
        }
        plan
    }

    /// Packs every B that is shared.
    fn pack_shared(&self, mut units: &mut [u32]) {
        let mut jobs = Vec::new();
        for source in self.sources.iter().filter(|source| source.shared.is_some()) {
            for ks in cut(0..source.k, K_BLOCK, CHUNK) {
                for cols in cut(0..source.n, PACK_COLS, self.kernel.cols) {
                    let len = cols.len().next_multiple_of(self.kernel.cols) * self.kernel.units(ks.len());
                    let (job, rest) = units.split_at_mut(len);
                    jobs.push((source, ks.clone(), cols, job));
                    units = rest;
                }
            }
        }
        jobs.into_par_iter().for_each(|(source, ks, cols, units)| self.pack_b(source, &cols, &ks, units));
    }

    fn pack_b(&self, source: &Source, cols: &Range<usize>, ks: &Range<usize>, units: &mut [u32]) {
        let width = self.kernel.cols;
        source.b.pack_line_inner(cut(cols.clone(), width, width), width, ks, units);
    }

    /// Computes one block of C.
    fn run(&self, task: &Task, shared: Option<&[u32]>) {
        let source = &self.sources[task.source];
        // SAFETY: the task's block lies inside C.
        let to = unsafe { source.c.add(task.rows.start * source.c_stride + task.cols.start) };
        let out = Out { to, stride: source.c_stride, cols: 0, accumulate: self.accumulate };
        Scratch::with(|Scratch { a, b, c: sums }| match to {
            OutPtr::Bf16(_) if source.k > K_BLOCK => {
                // The sums over all blocks of K are kept in f32 and rounded once.
                let width = task.cols.len();
                sums.resize(task.rows.len() * width, 0.0);
                let in_f32 =
                    Out { to: OutPtr::F32(sums.as_mut_ptr()), stride: width, cols: 0, accumulate: false };
                self.sum(source, task, shared, in_f32, a, b);
                for (row, sums) in sums.chunks_exact(width).enumerate() {
                    // SAFETY: the row lies inside this task's block of C.
                    vectorised(
                        #[inline(always)]
                        || unsafe { kernel::write_sums(sums, to.add(row * out.stride), out.accumulate) },
                    );
                }
            }
            _ => self.sum(source, task, shared, out, a, b),
        });
    }

    /// Sums one block of C over all of K into `out`.
    fn sum(
        &self,
        source: &Source,
        task: &Task,
        shared: Option<&[u32]>,
        out: Out,
        a_units: &mut Units,
        b_units: &mut Units,
    ) {
        let kernel = self.kernel;
        let a_is_k_inner = source.a.k_inner;
        let b_panels = cut(task.cols.clone(), kernel.cols, kernel.cols);
        let num_b_panels = task.cols.len().div_ceil(kernel.cols);
        let mut accumulate = out.accumulate;
        for ks in cut(0..source.k, K_BLOCK, CHUNK) {
            let k = kernel.units(ks.len());
            let b_len = k * kernel.cols;
            let b = match (shared, source.shared) {
                (Some(shared), Some(start)) => {
                    let before = source.n.next_multiple_of(kernel.cols) * kernel.units(ks.start);
                    &shared[start + before + task.cols.start * k..][..num_b_panels * b_len]
                }
                _ => {
                    let b = b_units.take(num_b_panels * b_len);
                    self.pack_b(source, &task.cols, &ks, b);
                    b
                }
            };
            // K-inner rows are packed just before their use, to be read from L1; others by a few panels, for the sake
            // of reading memory along its rows.
            let (a_len, group) = match a_is_k_inner {
                true => (k.next_multiple_of(CHUNK) * kernel.rows, kernel.rows),
                false => (k * kernel.a_width, kernel.rows * A_GROUP),
            };
            for rows in cut(task.rows.clone(), group, 1) {
                let a_panels = cut(rows.clone(), kernel.rows, 1);
                let a = a_units.take(rows.len().div_ceil(kernel.rows) * a_len);
                match a_is_k_inner {
                    true => source.a.pack_k_inner(&rows, &ks, a),
                    false => source.a.pack_line_inner(a_panels.clone(), kernel.a_width, &ks, a),
                }
                let next = rows.end..(rows.end + rows.len()).min(task.rows.end);
                for (rows, a) in a_panels.zip(a.chunks_exact(a_len)) {
                    for (index, (cols, b)) in b_panels.clone().zip(b.chunks_exact(b_len)).enumerate() {
                        if a_is_k_inner {
                            source.a.prefetch(&next, &ks, index, num_b_panels);
                        }
                        let panels = Panels {
                            a: a.as_ptr(),
                            b: b.as_ptr(),
                            k,
                            rows: rows.len(),
                            k_inner: a_is_k_inner,
                        };
                        let offset =
                            (rows.start - task.rows.start) * out.stride + cols.start - task.cols.start;
                        // SAFETY: the kernel was chosen for this processor; the panels were packed for it; the tile
                        // lies inside the block that `out` stands for, which only this task writes.
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

/// How a product's C is cut into tasks.
struct Blocks {
    rows: usize,
    cols: usize,
    /// Whether B is packed once and not by each task.
    share_b: bool,
}

/// Elements along K in one block: a panel of A of this length stays in L1 beside what streams through.
const K_BLOCK: usize = 256;
/// Most columns of C in one task: with K_BLOCK, a block of B takes at most half a mebibyte of L2.
const MAX_COLS: usize = 512;
/// Most rows of C in one task: what packing a block of B is spread over.
const MAX_ROWS: usize = 512;
/// Rows of C in one task when B is packed already.
const SHARED_ROWS: usize = 112;
/// The largest B that is packed once for all tasks, in elements.
const SHARED_B: usize = 1 << 20;
/// Columns of B in one job of packing.
const PACK_COLS: usize = 128;
/// Panels of A packed at once where K is not the inner dimension.
const A_GROUP: usize = 10;
/// Multiply-adds in one task, unless its block would become too narrow for its packing.
const TASK_MULTIPLY_ADDS: usize = 1 << 26;
/// Least rows and columns of C in one task, where C has as many.
const MIN_SIDE: usize = 128;

impl Blocks {
    fn of(m: usize, n: usize, k: usize) -> Self {
        let mut cols = n.min(MAX_COLS);
        if m >= 2 * MAX_ROWS && n * k <= SHARED_B {
            return Blocks { rows: SHARED_ROWS, cols, share_b: true };
        }
        let mut rows = m.min(MAX_ROWS);
        while rows * cols * k > TASK_MULTIPLY_ADDS && rows.max(cols) >= 2 * MIN_SIDE {
            match rows >= cols {
                true => rows = rows.div_ceil(2),
                false => cols = cols.div_ceil(2),
            }
        }
        Blocks { rows, cols, share_b: false }
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
