//! bf16 as fp16 of one scale: what the fp16 kernel reads.
//!
//! fp16 has three bits more of mantissa than bf16 and three bits less of exponent. The exponents of a block are shifted
//! by one amount that brings its largest finite value into 16 to 32; whatever is at least 2^-18 of that value then keeps
//! all its bits, and what is smaller is off by no more than 2^-20 of it. Infinities and NaNs stay what they are.

use std::ops::Range;

use crate::cpu::gemm::pack::{CHUNK, row_of};
use crate::cpu::gemm::transpose::transpose;
use crate::dtype::bf16;

/// The fp16 exponent field of a block's largest value: 64 products of values below 2^(19 - 15) sum to less than 2^15.
const LARGEST_FIELD: u16 = 18;
const MAGNITUDE: u16 = 0x7fff;
/// The magnitude of an infinity; that of a NaN is larger.
const INFINITE: u16 = 0x7f80;

/// How the values of a block are shifted.
#[derive(Clone, Copy)]
pub(super) struct Shift {
    /// What is taken from a magnitude before its exponent is at the place of fp16's.
    base: u16,
}

impl Shift {
    /// The shift for `rows` × `cols` elements; row r starts at `r * stride`.
    #[inline(always)]
    pub(super) fn of(x: &[bf16], stride: usize, rows: &Range<usize>, cols: &Range<usize>) -> Self {
        let mut largest = 0;
        for row in rows.clone() {
            for x in &x[row * stride..][cols.clone()] {
                let magnitude = x.to_bits() & MAGNITUDE;
                largest = largest.max(if magnitude < INFINITE { magnitude } else { 0 });
            }
        }
        Shift { base: (largest & INFINITE).saturating_sub(LARGEST_FIELD << 7) }
    }

    /// What the kernel multiplies a shifted value by to undo the shift.
    pub(super) fn scale(self) -> f32 {
        // 127 and 15 are the biases of the exponents.
        f32::exp2(f32::from(self.base >> 7) - (127.0 - 15.0))
    }

    #[inline(always)]
    fn apply(self, x: bf16) -> u16 {
        let (sign, magnitude) = (x.to_bits() & !MAGNITUDE, x.to_bits() & MAGNITUDE);
        let finite = magnitude.saturating_sub(self.base) << 3;
        let other = 0x7c00 | (magnitude << 3 & 0x3ff);
        sign | if magnitude < INFINITE { finite } else { other }
    }

    #[inline(always)]
    fn twice(self, x: bf16) -> u32 {
        let half = u32::from(self.apply(x));
        half | half << 16
    }
}

/// Rows of A as `[k / CHUNK][line][CHUNK]` units, each one element twice.
#[inline(always)]
pub(super) fn k_inner(
    x: &[bf16],
    stride: usize,
    lines: &Range<usize>,
    ks: &Range<usize>,
    units: &mut [u32],
    shift: Shift,
) {
    let step = lines.len() * CHUNK;
    for (index, line) in lines.clone().enumerate() {
        let from = &x[line * stride..][ks.clone()];
        for (from, units) in from.chunks(CHUNK).zip(units[index * CHUNK..].chunks_mut(step)) {
            match (from.first_chunk::<CHUNK>(), units.first_chunk_mut::<CHUNK>()) {
                (Some(from), Some(units)) => *units = from.map(|x| shift.twice(x)),
                _ => {
                    for (unit, x) in units.iter_mut().zip(from) {
                        *unit = shift.twice(*x);
                    }
                }
            }
        }
    }
}

/// Neighbouring lines of A as `[k][WIDTH]` units, each one element twice.
#[inline(always)]
pub(super) fn line_inner_twice<const WIDTH: usize>(
    x: &[bf16],
    stride: usize,
    lines: &Range<usize>,
    ks: &Range<usize>,
    units: &mut [u32],
    shift: Shift,
) {
    let (rows, _) = units.as_chunks_mut::<WIDTH>();
    for (k, out) in ks.clone().zip(rows) {
        *out = row_of::<_, WIDTH>(&x[k * stride + lines.start..], lines.len()).map(|x| shift.twice(x));
    }
}

/// Neighbouring columns of B as `[k][LINES / 2]` units, each two neighbours.
#[inline(always)]
pub(super) fn line_inner_columns(
    x: &[bf16],
    stride: usize,
    lines: &Range<usize>,
    ks: &Range<usize>,
    units: &mut [u32],
    shift: Shift,
) {
    const LINES: usize = 64;
    // SAFETY: a unit is two u16 side by side, whose every bit pattern is valid.
    let halves = unsafe { std::slice::from_raw_parts_mut(units.as_mut_ptr().cast::<u16>(), 2 * units.len()) };
    let (rows, _) = halves.as_chunks_mut::<LINES>();
    for (k, out) in ks.clone().zip(rows) {
        *out = row_of::<_, LINES>(&x[k * stride + lines.start..], lines.len()).map(|x| shift.apply(x));
    }
}

/// Columns of B that run along memory as `[k][WIDTH]` units, each two neighbouring columns.
#[inline(always)]
pub(super) fn transposed_columns<const WIDTH: usize>(
    x: &[bf16],
    stride: usize,
    lines: &Range<usize>,
    ks: &Range<usize>,
    units: &mut [u32],
    shift: Shift,
) {
    let mut done = 0;
    while done + 16 <= lines.len() && ks.len() == CHUNK {
        let mut block = [[0; CHUNK]; 8];
        for (pair, block) in block.iter_mut().enumerate() {
            let at = |line: usize| (lines.start + done + 2 * pair + line) * stride + ks.start;
            let (even, odd) = (&x[at(0)..][..CHUNK], &x[at(1)..][..CHUNK]);
            for ((unit, even), odd) in block.iter_mut().zip(even).zip(odd) {
                *unit = u32::from(shift.apply(*even)) | u32::from(shift.apply(*odd)) << 16;
            }
        }
        transpose::<WIDTH>(&block, &mut units[done / 2..]);
        done += 16;
    }
    // What is left, by single elements.
    for (index, line) in lines.clone().enumerate().skip(done) {
        let (place, at) = (index / 2, 16 * (index % 2));
        for (unit, x) in units[place..].iter_mut().step_by(WIDTH).zip(&x[line * stride..][ks.clone()]) {
            *unit = *unit & !(0xffff << at) | u32::from(shift.apply(*x)) << at;
        }
    }
}
