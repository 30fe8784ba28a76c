//! Copying blocks of operands into the order in which the kernels read them, as 32-bit units.
//!
//! A unit is one f32 (bf16 is widened on the way), a pair of bf16 neighbours along K, or two fp16 as `pack_fp16` makes
//! them: the kernel's [`Format`] says which. A line is a row of A or a column of B: what runs along K. A panel is a few lines, those of one
//! register tile.

use std::ops::Range;

use crate::cpu::gemm::kernel::Format;
use crate::cpu::gemm::matrix::{Matrix, Values};
#[cfg(target_arch = "x86_64")]
use crate::cpu::gemm::pack_fp16::{self, Stored};
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
    format: Format,
}

impl<'a> Lines<'a> {
    /// The rows of `a`.
    pub(super) fn rows(a: &Matrix<'a>, format: Format) -> Self {
        Lines { values: a.values, stride: a.stride, k_inner: a.rows_are_contiguous(), format }
    }

    /// The columns of `b`.
    pub(super) fn cols(b: &Matrix<'a>, format: Format) -> Self {
        Lines { values: b.values, stride: b.stride, k_inner: !b.rows_are_contiguous(), format }
    }

    /// Packs one panel of K-inner lines as `[k / CHUNK][line][CHUNK]` units. Units behind the last k are unspecified.
    pub(super) fn pack_k_inner(&self, lines: &Range<usize>, ks: &Range<usize>, units: &mut [u32]) {
        #[cfg(target_arch = "x86_64")]
        if let Some(from) = self.for_fp16() {
            // SAFETY: there is an fp16 kernel only where the processor has what packing for it takes.
            return unsafe { pack_fp16::pack_a_k_inner(from, lines, ks, units) };
        }
        let (lines, ks) = (lines.clone(), ks.clone());
        vectorised(
            #[inline(always)]
            || match (self.values, self.format) {
                (Values::F32(x), _) => k_inner(x, self.stride, lines, ks, units, f32_unit),
                (Values::Bf16(x), Format::Bf16Pairs) => k_inner(x, self.stride, lines, ks, units, pair_unit),
                (Values::Bf16(x), _) => k_inner(x, self.stride, lines, ks, units, wide_unit),
            },
        );
    }

    /// Packs panels of A whose K is not the inner dimension as `[panel][k][width]` units, one for each line; units
    /// behind a panel's last line are unspecified.
    pub(super) fn pack_a(
        &self,
        panels: impl Iterator<Item = Range<usize>> + Clone,
        width: usize,
        ks: &Range<usize>,
        units: &mut [u32],
    ) {
        #[cfg(target_arch = "x86_64")]
        if let Some(from) = self.for_fp16() {
            // SAFETY: there is an fp16 kernel only where the processor has what packing for it takes.
            return unsafe { pack_fp16::pack_a_line_inner(from, panels, ks, units) };
        }
        self.pack_line_inner(panels, width, ks, units);
    }

    /// Packs panels of B as `[panel][k][width]` units. Units behind a panel's last line are zero or other values of B: the
    /// kernel never stores their sums, but what happened to lie there might be subnormal, and slow as f32.
    pub(super) fn pack_b(
        &self,
        panels: impl Iterator<Item = Range<usize>> + Clone,
        width: usize,
        ks: &Range<usize>,
        units: &mut [u32],
    ) {
        #[cfg(target_arch = "x86_64")]
        if let Some(from) = self.for_fp16() {
            // SAFETY: there is an fp16 kernel only where the processor has what packing for it takes.
            return unsafe { pack_fp16::pack_b(from, self.k_inner, panels, ks, units) };
        }
        self.pack_line_inner(panels, width, ks, units);
    }

    fn pack_line_inner(
        &self,
        panels: impl Iterator<Item = Range<usize>> + Clone,
        width: usize,
        ks: &Range<usize>,
        units: &mut [u32],
    ) {
        // A strip of a few k over all panels at a time, so that memory is read along its rows.
        let per = if self.format == Format::Bf16Pairs { 2 } else { 1 };
        let panel_len = ks.len().div_ceil(per) * width;
        for (strip, start) in ks.clone().step_by(CHUNK * per).enumerate() {
            let ks = start..ks.end.min(start + CHUNK * per);
            let len = ks.len().div_ceil(per) * width;
            for (lines, units) in panels.clone().zip(units.chunks_mut(panel_len)) {
                let units = &mut units[strip * CHUNK * width..][..len];
                match width {
                    8 => self.pack_strip::<8>(lines, ks.clone(), units),
                    16 => self.pack_strip::<16>(lines, ks.clone(), units),
                    32 => self.pack_strip::<32>(lines, ks.clone(), units),
                    _ => unreachable!("no kernel has panels of {width}"),
                }
            }
        }
    }

    /// What brings a block into L2 in `parts` shares, ahead of its packing.
    pub(super) fn ahead(&self, lines: &Range<usize>, ks: &Range<usize>, parts: usize) -> Ahead {
        let (start, size) = match self.values {
            Values::F32(x) => (x.as_ptr().cast(), size_of::<f32>()),
            Values::Bf16(x) => (x.as_ptr().cast(), size_of::<bf16>()),
        };
        let (rows, row) = if self.k_inner { (lines, ks) } else { (ks, lines) };
        Ahead {
            start,
            stride: self.stride * size,
            rows: rows.clone(),
            row: row.start * size..row.end * size,
            share: rows.len().div_ceil(parts),
        }
    }

    /// The values, if they are to be packed as fp16.
    #[cfg(target_arch = "x86_64")]
    fn for_fp16(&self) -> Option<Stored<'a>> {
        match (self.values, self.format) {
            (Values::Bf16(x), Format::Fp16) => Some(Stored { x, stride: self.stride }),
            _ => None,
        }
    }

    fn pack_strip<const WIDTH: usize>(&self, lines: Range<usize>, ks: Range<usize>, units: &mut [u32]) {
        let stride = self.stride;
        vectorised(
            #[inline(always)]
            || match (self.values, self.format == Format::Bf16Pairs, self.k_inner) {
                (Values::F32(x), _, false) => {
                    line_inner::<_, 1, WIDTH>(x, stride, lines, ks, units, f32_unit)
                }
                (Values::Bf16(x), false, false) => {
                    line_inner::<_, 1, WIDTH>(x, stride, lines, ks, units, wide_unit)
                }
                (Values::Bf16(x), true, false) => {
                    line_inner::<_, 2, WIDTH>(x, stride, lines, ks, units, pair_unit)
                }
                (Values::F32(x), _, true) => transposed::<_, 1, WIDTH>(x, stride, lines, ks, units, f32_unit),
                (Values::Bf16(x), false, true) => {
                    transposed::<_, 1, WIDTH>(x, stride, lines, ks, units, wide_unit)
                }
                (Values::Bf16(x), true, true) => {
                    transposed::<_, 2, WIDTH>(x, stride, lines, ks, units, pair_unit)
                }
            },
        );
    }
}

/// A block of memory that is being brought into L2, share by share.
pub(super) struct Ahead {
    start: *const i8,
    /// Bytes from one row to the next.
    stride: usize,
    /// Rows still to come.
    rows: Range<usize>,
    /// Bytes of a row.
    row: Range<usize>,
    /// Rows at a time.
    share: usize,
}

impl Ahead {
    /// Asks for the next share.
    #[inline]
    pub(super) fn fetch(&mut self) {
        for row in self.rows.by_ref().take(self.share) {
            for offset in self.row.clone().step_by(64) {
                prefetch(self.start.wrapping_add(row * self.stride + offset));
            }
        }
    }
}

#[inline(always)]
fn prefetch(at: *const i8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing; any address is allowed.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(at);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
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
        let (groups, rest) = from.as_chunks::<PER>();
        let (chunks, groups) = groups.as_chunks::<CHUNK>();
        for chunk in chunks {
            if let Some(out) = units[at..].first_chunk_mut::<CHUNK>() {
                *out = std::array::from_fn(|i| unit(chunk[i]));
            }
            at += step;
        }
        let rest = (!rest.is_empty()).then(|| padded(rest));
        for (out, group) in units.iter_mut().skip(at).zip(groups.iter().copied().chain(rest)) {
            *out = unit(group);
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
    // Neighbours behind the panel are copied along where there are any: the kernel never stores their sums.
    let row = |k: usize| x.get(k * stride + lines.start..).and_then(|x| x.first_chunk::<WIDTH>());
    let (outs, _) = units.as_chunks_mut::<WIDTH>();
    for (k, out) in ks.clone().step_by(PER).zip(outs) {
        let last = k + PER - 1;
        if let (true, Some(first), Some(_)) = (last < ks.end, row(k), row(last)) {
            let rows: [&[T; WIDTH]; PER] = std::array::from_fn(|p| row(k + p).unwrap_or(first));
            for (j, out) in out.iter_mut().enumerate() {
                *out = unit(std::array::from_fn(|p| rows[p][j]));
            }
        } else {
            *out = [0; WIDTH];
            for (j, out) in lines.clone().zip(out) {
                *out = unit(std::array::from_fn(|p| {
                    if k + p < ks.end { x[(k + p) * stride + j] } else { T::default() }
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
    lines: Range<usize>,
    ks: Range<usize>,
    units: &mut [u32],
    unit: impl Fn([T; PER]) -> u32 + Copy,
) {
    if lines.len() < WIDTH {
        units.fill(0);
    }
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
