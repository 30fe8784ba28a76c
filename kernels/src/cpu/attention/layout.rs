//! How heads lie in their tensors and how their rows move in and out of scratch memory.

use std::marker::PhantomData;
use std::ops::Range;

use crate::cpu::attention::KEY_TILE;
use crate::cpu::float::Float;
use crate::cpu::simd::vectorised;
use crate::ops::attention::Problem;

/// Where the rows of one head lie in a tensor [batch, rows, heads, d].
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadRows {
    start: usize,
    stride: usize,
    num_rows: usize,
    head_dim: usize,
}

impl HeadRows {
    /// The rows of key/value head `head`, counted over all sequences.
    pub(super) fn of_keys(problem: &Problem, head: usize) -> Self {
        Self::new(problem, problem.num_keys, problem.num_kv_heads, head)
    }

    /// The rows of query head `head`, counted over all sequences.
    pub(super) fn of_queries(problem: &Problem, head: usize) -> Self {
        Self::new(problem, problem.num_queries, problem.num_heads, head)
    }

    fn new(problem: &Problem, num_rows: usize, num_heads: usize, head: usize) -> Self {
        let head_dim = problem.head_dim;
        HeadRows {
            start: (head / num_heads * num_rows * num_heads + head % num_heads) * head_dim,
            stride: num_heads * head_dim,
            num_rows,
            head_dim,
        }
    }

    /// The elements of row `row`.
    pub(super) fn at(&self, row: usize) -> Range<usize> {
        debug_assert!(row < self.num_rows);
        let start = self.start + row * self.stride;
        start..start + self.head_dim
    }

    /// Copies `scale` times the rows from `first` on into `to`, `width` elements apart. What lies behind the head
    /// size or behind the last row becomes 0.
    pub(super) fn load<F: Float>(&self, from: &[F], first: usize, scale: f32, to: &mut [f32], width: usize) {
        vectorised(
            #[inline(always)]
            || {
                for (row, to) in (first..).zip(to.chunks_exact_mut(width)) {
                    if row >= self.num_rows {
                        to.fill(0.0);
                        continue;
                    }
                    let (values, padding) = to.split_at_mut(self.head_dim);
                    for (to, from) in values.iter_mut().zip(&from[self.at(row)]) {
                        *to = scale * from.load();
                    }
                    padding.fill(0.0);
                }
            },
        );
    }

    /// Copies [`KEY_TILE`] rows from `first` on into the columns of `to`, [head_dim, KEY_TILE]. Columns behind the
    /// last row become 0.
    pub(super) fn load_transposed<F: Float>(&self, from: &[F], first: usize, to: &mut [f32]) {
        let num_rows = KEY_TILE.min(self.num_rows - first);
        for (d, to) in to.chunks_exact_mut(KEY_TILE).enumerate() {
            let (columns, padding) = to.split_at_mut(num_rows);
            let from = from[self.start + first * self.stride + d..].iter().step_by(self.stride);
            for (to, from) in columns.iter_mut().zip(from) {
                *to = from.load();
            }
            padding.fill(0.0);
        }
    }

    /// Stores `scale` times the rows of `from`, `width` elements apart, as the rows `rows` of the head in `to`.
    ///
    /// # Safety
    /// No other task uses these rows of `to`.
    pub(super) unsafe fn store<F: Float>(
        &self,
        from: &[f32],
        rows: Range<usize>,
        scale: f32,
        width: usize,
        to: &Shared<'_, F>,
    ) {
        vectorised(
            #[inline(always)]
            || {
                for (row, from) in rows.zip(from.chunks_exact(width)) {
                    // SAFETY: the caller's promise.
                    let to = unsafe { to.part(self.at(row)) };
                    for (to, from) in to.iter_mut().zip(from) {
                        *to = F::store(scale * from);
                    }
                }
            },
        );
    }
}

/// A slice whose parts are written by different tasks.
pub(super) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: the only access is `part`, whose callers promise disjoint parts; a `T` may be written from any thread.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(super) fn new(slice: &'a mut [T]) -> Self {
        Shared { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// No other part that is in use meets `range`.
    #[allow(clippy::mut_from_ref)] // parts are disjoint by the caller's promise
    pub(super) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "a part lies inside its slice");
        // SAFETY: inside the slice by the assertion; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

/// Cuts consecutive pieces of the given sizes off `buffer`.
pub(super) fn carve<const N: usize>(mut buffer: &mut [f32], sizes: [usize; N]) -> [&mut [f32]; N] {
    sizes.map(|size| {
        let (piece, rest) = std::mem::take(&mut buffer).split_at_mut(size);
        buffer = rest;
        piece
    })
}
