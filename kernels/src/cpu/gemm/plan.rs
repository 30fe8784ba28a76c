//! How products are cut into tasks. The sizes were measured on an Intel Sapphire Rapids core (L1 48 KiB, L2 2 MiB).

use std::ops::Range;

use rayon::prelude::*;

use crate::cpu::gemm::Product;
use crate::cpu::gemm::kernel::{Kernel, OutPtr};
use crate::cpu::gemm::matrix::ValuesMut;
use crate::cpu::gemm::pack::{CHUNK, Lines};

/// Elements along K in one block when A runs along K: a panel of A of this length stays in L1 beside what streams
/// through.
const K_BLOCK: usize = 256;
/// The same when A runs across K: each k is a cache line of its own then, and more of them push each other out of L1.
const K_BLOCK_ACROSS: usize = 128;
/// Most columns of C in one task: with K_BLOCK, a block of B takes at most half a mebibyte of L2.
const MAX_COLS: usize = 256;
/// Most rows of C in one task: what packing a block of B is spread over.
const MAX_ROWS: usize = 512;
/// Most rows of C in one task that need not pack B.
const READY_ROWS: usize = 112;
/// The largest B that is packed once for all tasks, in elements.
const SHARED_B: usize = 1 << 20;
/// Columns of B in one job of packing.
const PACK_COLS: usize = 128;
/// Panels of A packed at once where K is not the inner dimension.
pub(super) const A_GROUP: usize = 19;
/// Multiply-adds in one task, unless its block would become too narrow for its packing.
const TASK_MULTIPLY_ADDS: usize = 1 << 27;
/// Least rows and columns of C in one task, where C has as many.
const MIN_SIDE: usize = 128;

/// Products made ready to be computed block by block.
pub(super) struct Plan<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) accumulate: bool,
    pub(super) sources: Vec<Source<'a>>,
    pub(super) tasks: Vec<Task>,
    /// Units of all B that are packed once for all tasks.
    pub(super) shared_len: usize,
}

/// A product as the tasks see it.
pub(super) struct Source<'a> {
    pub(super) a: Lines<'a>,
    pub(super) b: Lines<'a>,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) c: OutPtr,
    pub(super) c_stride: usize,
    /// Where the packed B starts among the shared ones, as `[k block][panel][k][column]`.
    pub(super) shared: Option<usize>,
}

// SAFETY: the pointer to C comes from an exclusive borrow that outlives the plan, and tasks write disjoint blocks.
unsafe impl Sync for Source<'_> {}

/// A block of one product's C.
pub(super) struct Task {
    pub(super) source: usize,
    pub(super) rows: Range<usize>,
    pub(super) cols: Range<usize>,
}

impl<'a> Plan<'a> {
    /// Cuts the products into tasks; a B that many tasks read waits for [`Plan::pack_shared`].
    pub(super) fn new<'m: 'a>(kernel: &'a Kernel, products: &'a mut [Product<'m>], accumulate: bool) -> Self {
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
            let mut source = Source {
                a: Lines::rows(a, kernel.format),
                b: Lines::cols(b, kernel.format),
                n,
                k,
                c_stride: c.stride,
                c: match &mut c.values {
                    ValuesMut::F32(values) => OutPtr::F32(values.as_mut_ptr()),
                    ValuesMut::Bf16(values) => OutPtr::Bf16(values.as_mut_ptr()),
                },
                shared: None,
            };
            if m >= 2 * MAX_ROWS && n * k <= SHARED_B {
                source.shared = Some(plan.shared_len);
                plan.shared_len += source
                    .k_blocks()
                    .map(|ks| n.div_ceil(kernel.cols) * kernel.b_panel(ks.len()))
                    .sum::<usize>();
            }
            let (row_block, col_block) = block_size(m, n, k, source.shared.is_some());
            for rows in cut(0..m, row_block, 1) {
                for cols in cut(0..n, col_block, kernel.cols) {
                    plan.tasks.push(Task { source: plan.sources.len(), rows: rows.clone(), cols });
                }
            }
            plan.sources.push(source);
        }
        plan
    }

    /// Packs every B that is shared.
    pub(super) fn pack_shared(&self, mut units: &mut [u32]) {
        let mut jobs = Vec::new();
        for source in self.sources.iter().filter(|source| source.shared.is_some()) {
            for ks in source.k_blocks() {
                for cols in cut(0..source.n, PACK_COLS, self.kernel.cols) {
                    let len = cols.len().div_ceil(self.kernel.cols) * self.kernel.b_panel(ks.len());
                    let (job, rest) = units.split_at_mut(len);
                    jobs.push((source, ks.clone(), cols, job));
                    units = rest;
                }
            }
        }
        jobs.into_par_iter().for_each(|(source, ks, cols, units)| self.pack_b(source, &cols, &ks, units));
    }

    /// Packs a block of B as `[panel][k][column]`.
    pub(super) fn pack_b(&self, source: &Source, cols: &Range<usize>, ks: &Range<usize>, units: &mut [u32]) {
        let Kernel { cols: width, b_width, .. } = *self.kernel;
        source.b.pack_b(cut(cols.clone(), width, width), b_width, ks, units);
    }
}

impl Source<'_> {
    /// The blocks of K, one after the other.
    pub(super) fn k_blocks(&self) -> impl Iterator<Item = Range<usize>> + Clone + use<> {
        cut(0..self.k, if self.a.k_inner { K_BLOCK } else { K_BLOCK_ACROSS }, CHUNK)
    }
}

/// Rows and columns of C in one task. `b_is_ready` when tasks need not pack their part of B.
fn block_size(m: usize, n: usize, k: usize, b_is_ready: bool) -> (usize, usize) {
    let (mut rows, mut cols) = (m.min(MAX_ROWS), n.min(MAX_COLS));
    if b_is_ready {
        return (READY_ROWS, cols);
    }
    while rows * cols * k > TASK_MULTIPLY_ADDS && rows.max(cols) >= 2 * MIN_SIDE {
        match rows >= cols {
            true => rows = rows.div_ceil(2),
            false => cols = cols.div_ceil(2),
        }
    }
    (rows, cols)
}

/// Cuts a range into the fewest parts of at most `max`, nearly equal, each but the last a multiple of `unit`.
pub(super) fn cut(
    range: Range<usize>,
    max: usize,
    unit: usize,
) -> impl Iterator<Item = Range<usize>> + Clone + use<> {
    let parts = range.len().div_ceil(max);
    let units = range.len().div_ceil(unit);
    (0..parts).map(move |part| {
        let edge = |part: usize| (range.start + units * part / parts * unit).min(range.end);
        edge(part)..edge(part + 1)
    })
}
