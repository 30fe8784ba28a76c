//! One task: a block of C, summed over K.

use std::ops::Range;

use crate::cpu::gemm::kernel::{Out, OutPtr, Panels, write_sums};
use crate::cpu::gemm::pack::CHUNK;
use crate::cpu::gemm::plan::{A_GROUP, Plan, Task, cut};
use crate::cpu::gemm::scratch::{Scratch, Units};
use crate::cpu::simd::vectorised;

/// Packed panels of an operand over a block of K.
struct Packed<'a> {
    units: &'a [u32],
    panel_len: usize,
}

impl Packed<'_> {
    fn panel(&self, index: usize) -> *const u32 {
        self.units[index * self.panel_len..].as_ptr()
    }
}

impl Plan<'_> {
    /// Computes one block of C; `shared` holds what [`Plan::pack_shared`] packed.
    pub(super) fn run(&self, task: &Task, shared: &[u32]) {
        let source = &self.sources[task.source];
        // SAFETY: the task's block lies inside C.
        let to = unsafe { source.c.add(task.rows.start * source.c_stride + task.cols.start) };
        let out = Out { to, stride: source.c_stride, cols: 0, accumulate: self.accumulate };
        Scratch::with(|Scratch { a, b, c: sums }| match to {
            OutPtr::Bf16(_) if source.k_blocks().nth(1).is_some() => {
                // The sums over all blocks of K are kept in f32 and rounded once.
                let width = task.cols.len();
                sums.resize(task.rows.len() * width, 0.0);
                let to_sums = OutPtr::F32(sums.as_mut_ptr());
                self.sum(task, shared, Out { to: to_sums, stride: width, cols: 0, accumulate: false }, a, b);
                for (row, sums) in sums.chunks_exact(width).enumerate() {
                    vectorised(
                        #[inline(always)]
                        || {
                            // SAFETY: the row lies inside this task's block of C.
                            unsafe { write_sums(sums, to.add(row * out.stride), out.accumulate) }
                        },
                    );
                }
            }
            _ => self.sum(task, shared, out, a, b),
        });
    }

    /// Sums one block of C over all of K into `out`.
    fn sum(&self, task: &Task, shared: &[u32], out: Out, a_units: &mut Units, b_units: &mut Units) {
        let (kernel, source) = (self.kernel, &self.sources[task.source]);
        let mut accumulate = out.accumulate;
        let num_b_panels = task.cols.len().div_ceil(kernel.cols);
        let num_tiles = task.rows.len().div_ceil(kernel.rows) * num_b_panels;
        for (block, ks) in source.k_blocks().enumerate() {
            let b = self.b_panels(task, (block, &ks), shared, b_units);
            // The memory that is packed next is fetched meanwhile, a share with each tile: the next block of K, and of
            // K-inner rows the next ones.
            let next_ks = ks.end..(ks.end + ks.len()).min(source.k);
            let mut next_a = source.a.ahead(&task.rows, &next_ks, num_tiles);
            let mut next_b = source.shared.is_none().then(|| source.b.ahead(&task.cols, &next_ks, num_tiles));
            // K-inner rows are packed just before their use, to be read from L1; others by a few panels, for the sake
            // of reading memory along its rows.
            let group = if source.a.k_inner { kernel.rows } else { kernel.rows * A_GROUP };
            for rows in cut(task.rows.clone(), group, 1) {
                let a = self.a_panels(task, &rows, &ks, a_units);
                if source.a.k_inner {
                    let next_rows = rows.end..(rows.end + rows.len()).min(task.rows.end);
                    next_a = source.a.ahead(&next_rows, &ks, num_b_panels);
                }
                for (a_index, a_rows) in cut(rows.clone(), kernel.rows, 1).enumerate() {
                    for (b_index, b_cols) in cut(task.cols.clone(), kernel.cols, kernel.cols).enumerate() {
                        next_a.fetch();
                        if let Some(next_b) = &mut next_b {
                            next_b.fetch();
                        }
                        let panels = Panels {
                            a: a.panel(a_index),
                            k_inner: source.a.k_inner,
                            b: b.panel(b_index),
                            k: kernel.units(ks.len()),
                            rows: a_rows.len(),
                        };
                        let row = a_rows.start - task.rows.start;
                        let offset = row * out.stride + b_cols.start - task.cols.start;
                        // SAFETY: the kernel was chosen for this processor; the panels were packed for it; the tile
                        // lies inside the block that `out` stands for, which only this task writes.
                        unsafe {
                            let to = out.to.add(offset);
                            (kernel.run)(panels, Out { to, cols: b_cols.len(), accumulate, ..out });
                        }
                    }
                }
            }
            accumulate = true;
        }
    }

    /// The task's part of B over a block of K, which has this index: shared by all tasks, or packed into `units`.
    fn b_panels<'s>(
        &self,
        task: &Task,
        (block, ks): (usize, &Range<usize>),
        shared: &'s [u32],
        units: &'s mut Units,
    ) -> Packed<'s> {
        let (kernel, source, width) = (self.kernel, &self.sources[task.source], self.kernel.cols);
        let panel_len = kernel.b_panel(ks.len());
        let len = task.cols.len().div_ceil(width) * panel_len;
        let Some(start) = source.shared else {
            let units = units.take(len);
            self.pack_b(source, &task.cols, ks, units);
            return Packed { units, panel_len };
        };
        // The blocks before, a header for each, then the panels before in this block.
        let before = block * kernel.header() + kernel.b_width * kernel.units(ks.start);
        let start = start + source.n.div_ceil(width) * before + task.cols.start / width * panel_len;
        Packed { units: &shared[start..][..len], panel_len }
    }

    /// Some rows of A over a block of K, packed into `units`.
    fn a_panels<'s>(
        &self,
        task: &Task,
        rows: &Range<usize>,
        ks: &Range<usize>,
        units: &'s mut Units,
    ) -> Packed<'s> {
        let (kernel, a) = (self.kernel, &self.sources[task.source].a);
        let k = kernel.units(ks.len());
        if a.k_inner {
            // All rows are one panel.
            let units = units.take(kernel.header() + k.next_multiple_of(CHUNK) * rows.len());
            a.pack_k_inner(rows, ks, units);
            return Packed { units, panel_len: 0 };
        }
        let panel_len = kernel.header() + k * kernel.a_width;
        let units = units.take(rows.len().div_ceil(kernel.rows) * panel_len);
        a.pack_a(cut(rows.clone(), kernel.rows, 1), kernel.a_width, ks, units);
        Packed { units, panel_len }
    }
}
