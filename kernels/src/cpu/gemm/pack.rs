//! Copying blocks of operands into the order in which the kernels read them, as 32-bit units.
//!
//! A unit is one f32 (bf16 is widened on the way) or, for kernels that multiply bf16 directly, a pair of bf16
//! neighbours along K. A line is a row of A or a column of B: what runs along K.

use crate::cpu::gemm::matrix::{Matrix, Values};
use crate::cpu::simd::vectorised;
use crate::dtype::bf16;

/// Units of one line that stand together in the K-inner order: one cache line.
pub(super) const CHUNK: usize = 16;

/// An operand as lines along K.
#[derive(Clone, Copy)]
pub(super) struct Lines<'a> {
    values: Values<'a>,
    stride: usize,
    /// Whether a line's elements are neighbours in memory; else the elements of all lines at one k are.
    pub(super) k_inner: bool,
    /// Whether bf16 is packed in pairs.
    pairs: bool,
}

/// Lines `first..first + count`, elements `start..end` of each.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) start: usize,
    pub(super) end: usize,
}

impl<'a> Lines<'a> {
    /// The rows of `a`.
    pub(super) fn rows(a: &Matrix<'a>, pairs: bool) -> Self {
        Lines { values: a.values, stride: a.stride, k_inner: a.rows_are_contiguous(), pairs }
    }

    /// The columns of `b`.
    pub(super) fn cols(b: &Matrix<'a>, pairs: bool) -> Self {
        Lines { values: b.values, stride: b.stride, k_inner: !b.rows_are_contiguous(), pairs }
    }

    /// For K-inner lines: `[k / CHUNK][count][CHUNK]` units. The last chunk may be partly unwritten.
    pub(super) fn pack_k_inner(&self, block: Block, units: &mut [u32]) {
        vectorised(|| match (self.values, self.pairs) {
            (Values::F32(x), _) => k_inner(x, self.stride, block, units, f32_unit),
            (Values::Bf16(x), false) => k_inner(x, self.stride, block, units, wide_unit),
            (Values::Bf16(x), true) => k_inner(x, self.stride, block, units, pair_unit),
        });
    }

    /// `[k][WIDTH]` units, one for each line of the block; those behind the last line are unspecified.
    pub(super) fn pack_line_inner<const WIDTH: usize>(&self, block: Block, units: &mut [u32]) {
        vectorised(|| match (self.values, self.pairs, self.k_inner) {
            (Values::F32(x), _, false) => line_inner::<_, 1, WIDTH>(x, self.stride, block, units, f32_unit),
            (Values::Bf16(x), false, false) => {
                line_inner::<_, 1, WIDTH>(x, self.stride, block, units, wide_unit)
            }
            (Values::Bf16(x), true, false) => {
                line_inner::<_, 2, WIDTH>(x, self.stride, block, units, pair_unit)
            }
            (Values::F32(x), _, true) => transposed::<_, 1, WIDTH>(x, self.stride, block, units, f32_unit),
            (Values::Bf16(x), false, true) => {
                transposed::<_, 1, WIDTH>(x, self.stride, block, units, wide_unit)
            }
            (Values::Bf16(x), true, true) => {
                transposed::<_, 2, WIDTH>(x, self.stride, block, units, pair_unit)
            }
        });
    }
}

#[inline(always)]
fn f32_unit([x]: [f32; 1]) -> u32 {
    x.to_bits()
}

#[inline(always)]
fn wide_unit([x]: [bf16; 1]) -> u32 {
    u32::from(x.to_bits()) << 16
}

#[inline(always)]
fn pair_unit([low, high]: [bf16; 2]) -> u32 {
    u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16
}

/// Copies pieces of CHUNK units, side by side in memory on both ends.
#[inline(always)]
fn k_inner<T: Copy + Default, const PER: usize>(
    x: &[T],
    stride: usize,
    block: Block,
    units: &mut [u32],
    unit: impl Fn([T; PER]) -> u32,
) {
    let chunk = CHUNK * PER;
    for (index, start) in (block.start..block.end).step_by(chunk).enumerate() {
        let len = chunk.min(block.end - start);
        let out = &mut units[index * block.count * CHUNK..][..block.count * CHUNK];
        for (line, out) in out.chunks_exact_mut(CHUNK).enumerate() {
            let from = &x[(block.first + line) * stride + start..][..len];
            if len == chunk {
                let (groups, _) = from.as_chunks::<PER>();
                for (out, group) in out.iter_mut().zip(groups) {
                    *out = unit(*group);
                }
            } else {
                for (out, group) in out.iter_mut().zip(from.chunks(PER)) {
                    *out = unit(padded(group));
                }
            }
        }
    }
}

/// Copies whole rows of WIDTH neighbours, PER of them into one row of units.
#[inline(always)]
fn line_inner<T: Copy + Default, const PER: usize, const WIDTH: usize>(
    x: &[T],
    stride: usize,
    block: Block,
    units: &mut [u32],
    unit: impl Fn([T; PER]) -> u32,
) {
    let (rows, _) = units.as_chunks_mut::<WIDTH>();
    for (start, out) in (block.start..block.end).step_by(PER).zip(rows) {
        // Neighbours behind the block are copied along where there are any: the kernel never stores their sums.
        let inside = start + PER <= block.end && (start + PER - 1) * stride + block.first + WIDTH <= x.len();
        if inside {
            let from: [&[T]; PER] =
                std::array::from_fn(|p| &x[(start + p) * stride + block.first..][..WIDTH]);
            for (j, out) in out.iter_mut().enumerate() {
                *out = unit(std::array::from_fn(|p| from[p][j]));
            }
        } else {
            for (j, out) in out[..block.count].iter_mut().enumerate() {
                *out = unit(std::array::from_fn(|p| match start + p < block.end {
                    true => x[(start + p) * stride + block.first + j],
                    false => T::default(),
                }));
            }
        }
    }
}

/// Turns lines that run along memory into columns of units.
#[inline(always)]
fn transposed<T: Copy + Default, const PER: usize, const WIDTH: usize>(
    x: &[T],
    stride: usize,
    block: Block,
    units: &mut [u32],
    unit: impl Fn([T; PER]) -> u32,
) {
    for line in 0..block.count {
        let from = &x[(block.first + line) * stride..][block.start..block.end];
        for (out, group) in units[line..].iter_mut().step_by(WIDTH).zip(from.chunks(PER)) {
            *out = unit(padded(group));
        }
    }
}

#[inline(always)]
fn padded<T: Copy + Default, const PER: usize>(group: &[T]) -> [T; PER] {
    std::array::from_fn(|p| group.get(p).copied().unwrap_or_default())
}
