//! Copying blocks of operands into the order in which the kernels read them, as 32-bit units.
//!
//! A unit is one f32 (bf16 is widened on the way) or two halves, as [`Unit`] says. A line is a row of A or a column of B: what runs along K. A panel is a few lines, those of one
//! register tile.

use std::ops::Range;

use crate::cpu::gemm::kernel::{Format, Kernel};
use crate::cpu::gemm::matrix::{Matrix, Values};
use crate::cpu::gemm::pack_fp16::{self as fp16, Shift};
use crate::cpu::gemm::transpose::transpose;
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
    unit: Unit,
}

/// What a packed unit holds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Unit {
    /// One f32.
    F32,
    /// Two bf16 of a line, neighbours along K.
    Bf16Pair,
    /// One fp16 of a line, twice: a unit that is spread over a vector.
    Fp16Twice,
    /// The fp16 of two neighbouring lines.
    Fp16Lines,
}

impl<'a> Lines<'a> {
    /// The rows of `a`.
    pub(super) fn rows(a: &Matrix<'a>, kernel: &Kernel) -> Self {
        let unit = match kernel.format {
            Format::F32 => Unit::F32,
            Format::Bf16Pairs => Unit::Bf16Pair,
            Format::Fp16 => Unit::Fp16Twice,
        };
        Lines { values: a.values, stride: a.stride, k_inner: a.rows_are_contiguous(), unit }
    }

    /// The columns of `b`.
    pub(super) fn cols(b: &Matrix<'a>, kernel: &Kernel) -> Self {
        let unit = match kernel.format {
            Format::F32 => Unit::F32,
            Format::Bf16Pairs => Unit::Bf16Pair,
            Format::Fp16 => Unit::Fp16Lines,
        };
        Lines { values: b.values, stride: b.stride, k_inner: !b.rows_are_contiguous(), unit }
    }

    /// Packs one panel of K-inner lines as `[k / CHUNK][line][CHUNK]` units. Units behind the last k are unspecified.
    pub(super) fn pack_k_inner(&self, lines: &Range<usize>, ks: &Range<usize>, units: &mut [u32]) {
        let stride = self.stride;
        vectorised(
            #[inline(always)]
            || match (self.values, self.unit) {
                (Values::F32(x), _) => k_inner(x, stride, lines.clone(), ks.clone(), units, f32_unit),
                (Values::Bf16(x), Unit::F32) => {
                    k_inner(x, stride, lines.clone(), ks.clone(), units, wide_unit)
                }
                (Values::Bf16(x), Unit::Bf16Pair) => {
                    k_inner(x, stride, lines.clone(), ks.clone(), units, pair_unit)
                }
                (Values::Bf16(x), Unit::Fp16Twice | Unit::Fp16Lines) => {
                    let shift = Shift::of(x, stride, lines, ks);
                    let (header, units) = units.split_at_mut(CHUNK);
                    header[0] = shift.scale().to_bits();
                    fp16::k_inner(x, stride, lines, ks, units, shift);
                }
            },
        );
    }

    /// Packs panels as `[panel][k][width]` units, one for each line; units behind a panel's last line are unspecified.
    pub(super) fn pack_line_inner(
        &self,
        panels: impl Iterator<Item = Range<usize>> + Clone,
        width: usize,
        ks: &Range<usize>,
        units: &mut [u32],
    ) {
        // A strip of a few k over all panels at a time, so that memory is read along its rows.
        let per = if self.unit == Unit::Bf16Pair { 2 } else { 1 };
        let shift = self.shift(&panels, ks);
        let header = if shift.is_some() { CHUNK } else { 0 };
        let panel_len = header + ks.len().div_ceil(per) * width;
        for (strip, start) in ks.clone().step_by(CHUNK * per).enumerate() {
            let ks = start..ks.end.min(start + CHUNK * per);
            let len = ks.len().div_ceil(per) * width;
            for (lines, units) in panels.clone().zip(units.chunks_mut(panel_len)) {
                if let Some(shift) = shift {
                    units[0] = shift.scale().to_bits();
                }
                let units = &mut units[header + strip * CHUNK * width..][..len];
                match width {
                    8 => self.pack_strip::<8>(lines, ks.clone(), units, shift),
                    16 => self.pack_strip::<16>(lines, ks.clone(), units, shift),
                    32 => self.pack_strip::<32>(lines, ks.clone(), units, shift),
                    _ => unreachable!("no kernel has panels of {width}"),
                }
            }
        }
    }

    /// The common shift of all panels, if they are packed as fp16.
    fn shift(
        &self,
        panels: &(impl Iterator<Item = Range<usize>> + Clone),
        ks: &Range<usize>,
    ) -> Option<Shift> {
        let (Values::Bf16(x), Unit::Fp16Twice | Unit::Fp16Lines) = (self.values, self.unit) else {
            return None;
        };
        let start = panels.clone().next()?.start;
        let lines = start..panels.clone().fold(start, |end, lines| end.max(lines.end));
        Some(vectorised(
            #[inline(always)]
            || match self.k_inner {
                true => Shift::of(x, self.stride, &lines, ks),
                false => Shift::of(x, self.stride, ks, &lines),
            },
        ))
    }

    /// The units from a line at a k on, when they need no packing: f32 not running along K, multiplied as f32.
    pub(super) fn in_place(&self, line: usize, k: usize) -> Option<(*const u32, usize)> {
        match self.values {
            Values::F32(x) if !self.k_inner => {
                Some((x[k * self.stride + line..].as_ptr().cast(), self.stride))
            }
            _ => None,
        }
    }

    /// Asks for one of `parts` shares of a block to be brought into L2, ahead of its packing.
    pub(super) fn prefetch(&self, lines: &Range<usize>, ks: &Range<usize>, part: usize, parts: usize) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            let (base, size) = match self.values {
                Values::F32(x) => (x.as_ptr().cast::<i8>(), size_of::<f32>()),
                Values::Bf16(x) => (x.as_ptr().cast::<i8>(), size_of::<bf16>()),
            };
            let (rows, row) = if self.k_inner { (lines, ks) } else { (ks, lines) };
            let edge = |part: usize| rows.start + rows.len() * part.min(parts) / parts;
            for at in edge(part)..edge(part + 1) {
                let start = (at * self.stride + row.start) * size;
                for offset in (start..start + row.len() * size).step_by(64) {
                    // SAFETY: a prefetch reads nothing; any address is allowed.
                    unsafe { _mm_prefetch::<_MM_HINT_T1>(base.wrapping_add(offset)) };
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (lines, ks, part, parts);
    }

    fn pack_strip<const WIDTH: usize>(
        &self,
        lines: Range<usize>,
        ks: Range<usize>,
        units: &mut [u32],
        shift: Option<Shift>,
    ) {
        let stride = self.stride;
        vectorised(
            #[inline(always)]
            || match (self.values, self.unit, self.k_inner, shift) {
                (Values::Bf16(x), Unit::Fp16Twice, _, Some(shift)) => {
                    fp16::line_inner_twice::<WIDTH>(x, stride, &lines, &ks, units, shift)
                }
                (Values::Bf16(x), Unit::Fp16Lines, false, Some(shift)) => {
                    fp16::line_inner_columns(x, stride, &lines, &ks, units, shift)
                }
                (Values::Bf16(x), Unit::Fp16Lines, true, Some(shift)) => {
                    fp16::transposed_columns::<WIDTH>(x, stride, &lines, &ks, units, shift)
                }
                (Values::F32(x), _, false, _) => {
                    line_inner::<_, 1, WIDTH>(x, stride, lines, ks, units, f32_unit)
                }
                (Values::F32(x), _, true, _) => {
                    transposed::<_, 1, WIDTH>(x, stride, lines, ks, units, f32_unit)
                }
                (Values::Bf16(x), Unit::Bf16Pair, false, _) => {
                    line_inner::<_, 2, WIDTH>(x, stride, lines, ks, units, pair_unit)
                }
                (Values::Bf16(x), Unit::Bf16Pair, true, _) => {
                    transposed::<_, 2, WIDTH>(x, stride, lines, ks, units, pair_unit)
                }
                (Values::Bf16(x), _, false, _) => {
                    line_inner::<_, 1, WIDTH>(x, stride, lines, ks, units, wide_unit)
                }
                (Values::Bf16(x), _, true, _) => {
                    transposed::<_, 1, WIDTH>(x, stride, lines, ks, units, wide_unit)
                }
            },
        );
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
    lines: Range<usize>,
    ks: Range<usize>,
    units: &mut [u32],
    unit: impl Fn([T; PER]) -> u32,
) {
    let step = lines.len() * CHUNK;
    for (index, line) in lines.enumerate() {
        let from = &x[line * stride..][ks.clone()];
        let mut at = index * CHUNK;
        let mut chunks = from.chunks_exact(CHUNK * PER);
        for from in &mut chunks {
            let (groups, _) = from.as_chunks::<PER>();
            for (out, group) in units[at..][..CHUNK].iter_mut().zip(groups) {
                *out = unit(*group);
            }
            at += step;
        }
        for (out, group) in units.iter_mut().skip(at).zip(chunks.remainder().chunks(PER)) {
            *out = unit(padded(group));
        }
    }
}

/// Copies whole rows of WIDTH neighbours, PER of them into one row of units.
#[inline(always)]
fn line_inner<T: Copy + Default, const PER: usize, const WIDTH: usize>(
    x: &[T],
    stride: usize,
    lines: Range<usize>,
    ks: Range<usize>,
    units: &mut [u32],
    unit: impl Fn([T; PER]) -> u32,
) {
    let (rows, _) = units.as_chunks_mut::<WIDTH>();
    for (k, out) in ks.clone().step_by(PER).zip(rows) {
        let mut from = [[T::default(); WIDTH]; PER];
        for (k, from) in (k..ks.end).zip(&mut from) {
            *from = row_of(&x[k * stride + lines.start..], lines.len());
        }
        *out = std::array::from_fn(|j| unit(std::array::from_fn(|p| from[p][j])));
    }
}

/// The first `len` elements, and behind them whatever is there: the kernel never stores their sums.
#[inline(always)]
pub(super) fn row_of<T: Copy + Default, const WIDTH: usize>(x: &[T], len: usize) -> [T; WIDTH] {
    match x.first_chunk() {
        Some(row) => *row,
        None => {
            let mut row = [T::default(); WIDTH];
            row[..len].copy_from_slice(&x[..len]);
            row
        }
    }
}

/// Turns lines that run along memory into columns of units.
#[inline(always)]
fn transposed<T: Copy + Default, const PER: usize, const WIDTH: usize>(
    x: &[T],
    stride: usize,
    lines: Range<usize>,
    ks: Range<usize>,
    units: &mut [u32],
    unit: impl Fn([T; PER]) -> u32 + Copy,
) {
    let mut done = 0;
    while done + 8 <= lines.len() {
        // Two squares of eight lines and eight units, unless the strip is short.
        let mut block = [[0; CHUNK]; 8];
        for (j, block) in block.iter_mut().enumerate() {
            let from = &x[(lines.start + done + j) * stride..][ks.clone()];
            let Ok(groups) = <&[[T; PER]; CHUNK]>::try_from(from.as_chunks::<PER>().0) else { break };
            for (out, group) in block.iter_mut().zip(groups) {
                *out = unit(*group);
            }
        }
        if ks.len() < CHUNK * PER {
            break;
        }
        transpose::<WIDTH>(&block, &mut units[done..]);
        done += 8;
    }
    for (j, line) in lines.enumerate().skip(done) {
        let from = &x[line * stride..][ks.clone()];
        for (out, group) in units[j..].iter_mut().step_by(WIDTH).zip(from.chunks(PER)) {
            *out = unit(padded(group));
        }
    }
}

#[inline(always)]
fn padded<T: Copy + Default, const PER: usize>(group: &[T]) -> [T; PER] {
    std::array::from_fn(|p| group.get(p).copied().unwrap_or_default())
}
