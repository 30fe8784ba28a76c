//! Packing bf16 as fp16 of one scale, for the fp16 kernel. Every packed panel starts with a line that holds its scale.
//!
//! fp16 has three bits more of mantissa than bf16 and three bits less of exponent. The exponents of a block are shifted
//! by one amount that brings its largest finite value into 8 to 16; whatever is at least 2^-18 of that value then keeps
//! all its bits, and what is smaller is off by no more than 2^-18 of it. Infinities and NaNs stay what they are.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::cpu::gemm::pack::CHUNK;
use crate::dtype::bf16;

/// The fp16 exponent field of a block's largest value: 64 products of values below 2^4 sum to at most 2^14.
const LARGEST_FIELD: i16 = 18;
const MAGNITUDE: i16 = 0x7fff;
/// The magnitude of an infinity; that of a NaN is larger.
const INFINITE: i16 = 0x7f80;
/// Lines in a panel of B.
const B_LINES: usize = 64;
/// Values in half a vector, which is what most steps here work on.
const LANES: usize = 16;

/// bf16 values by rows of memory.
#[derive(Clone, Copy)]
pub(super) struct Stored<'a> {
    pub(super) x: &'a [bf16],
    /// Elements from one row to the next.
    pub(super) stride: usize,
}

impl<'a> Stored<'a> {
    fn row(&self, row: usize, cols: &Range<usize>) -> &'a [bf16] {
        &self.x[row * self.stride..][cols.clone()]
    }
}

/// Packs a panel of rows of A as `[k / CHUNK][line][CHUNK]` units, each one value twice.
///
/// # Safety
/// The processor must have AVX-512 F, BW and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn pack_a_k_inner(from: Stored, lines: &Range<usize>, ks: &Range<usize>, units: &mut [u32]) {
    let shift = Shift::of(from, lines, ks);
    let units = shift.write_header(units);
    let step = lines.len() * CHUNK;
    for (index, line) in lines.clone().enumerate() {
        let row = from.row(line, ks);
        for (values, units) in row.chunks(LANES).zip(units[index * CHUNK..].chunks_mut(step)) {
            store_twice(shift.apply(load(values)), units);
        }
    }
}

/// Packs panels of neighbouring lines of A as `[panel][k][CHUNK]` units, each one value twice.
///
/// # Safety
/// As [`pack_a_k_inner`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn pack_a_line_inner(
    from: Stored,
    panels: impl Iterator<Item = Range<usize>> + Clone,
    ks: &Range<usize>,
    units: &mut [u32],
) {
    let shift = Shift::of(from, ks, &span(&panels));
    let panel_len = CHUNK + ks.len() * CHUNK;
    for units in units.chunks_mut(panel_len) {
        shift.write_header(units);
    }
    for (index, k) in ks.clone().enumerate() {
        for (lines, units) in panels.clone().zip(units[CHUNK * (1 + index)..].chunks_mut(panel_len)) {
            // What stands behind the panel is copied along where it is there: the kernel never stores its sums.
            let values = &from.x[k * from.stride + lines.start..];
            store_twice(shift.apply(load(&values[..values.len().min(LANES)])), units);
        }
    }
}

/// Packs panels of neighbouring columns of B, or with `k_inner` of columns along memory, as `[panel][k][32]` units,
/// each two neighbouring columns.
///
/// # Safety
/// As [`pack_a_k_inner`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn pack_b(
    from: Stored,
    k_inner: bool,
    panels: impl Iterator<Item = Range<usize>> + Clone,
    ks: &Range<usize>,
    units: &mut [u32],
) {
    let columns = span(&panels);
    let shift = if k_inner { Shift::of(from, &columns, ks) } else { Shift::of(from, ks, &columns) };
    let panel_len = CHUNK + ks.len() * (B_LINES / 2);
    for units in units.chunks_mut(panel_len) {
        shift.write_header(units);
    }
    // A strip of a few k over all panels at a time, so that memory is read along its rows.
    for (strip, start) in ks.clone().step_by(CHUNK).enumerate() {
        let ks = start..ks.end.min(start + CHUNK);
        for (lines, units) in panels.clone().zip(units.chunks_mut(panel_len)) {
            let units = &mut units[CHUNK + strip * CHUNK * (B_LINES / 2)..][..ks.len() * (B_LINES / 2)];
            match k_inner {
                true => transpose(from, &lines, &ks, units, shift),
                false => {
                    for (k, units) in ks.clone().zip(units.chunks_exact_mut(B_LINES / 2)) {
                        for (values, units) in
                            from.row(k, &lines).chunks(LANES).zip(units.chunks_mut(LANES / 2))
                        {
                            store(shift.apply(load(values)), units);
                        }
                    }
                }
            }
        }
    }
}

/// All lines of the panels.
fn span(panels: &(impl Iterator<Item = Range<usize>> + Clone)) -> Range<usize> {
    let start = panels.clone().next().map_or(0, |lines| lines.start);
    start..panels.clone().last().map_or(0, |lines| lines.end)
}

/// How the values of a block are shifted.
#[derive(Clone, Copy)]
struct Shift {
    /// What is taken from a magnitude before its exponent is at the place of fp16's.
    base: i16,
    all_finite: bool,
}

impl Shift {
    /// The shift for a block of stored rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn of(from: Stored, rows: &Range<usize>, cols: &Range<usize>) -> Self {
        let mut largest = largest_magnitude(from, rows, cols);
        let all_finite = largest < INFINITE;
        if !all_finite {
            let values = rows.clone().flat_map(|row| from.row(row, cols));
            let magnitudes = values.map(|x| x.to_bits().cast_signed() & MAGNITUDE);
            largest = magnitudes.filter(|x| *x < INFINITE).max().unwrap_or(0);
        }
        Shift { base: ((largest & INFINITE) - (LARGEST_FIELD << 7)).max(0), all_finite }
    }

    /// Writes what the kernel multiplies a shifted value by to undo the shift; gives the units behind.
    fn write_header(self, units: &mut [u32]) -> &mut [u32] {
        let (header, units) = units.split_at_mut(CHUNK);
        // 127 and 15 are the biases of the exponents.
        header[0] = f32::exp2(f32::from(self.base >> 7) - (127.0 - 15.0)).to_bits();
        units
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn apply(self, x: __m256i) -> __m256i {
        let magnitude = _mm256_and_si256(x, _mm256_set1_epi16(MAGNITUDE));
        let mut shifted = _mm256_slli_epi16::<3>(_mm256_subs_epu16(magnitude, _mm256_set1_epi16(self.base)));
        if !self.all_finite {
            let other = _mm256_cmpge_epi16_mask(magnitude, _mm256_set1_epi16(INFINITE));
            let all_but_mantissa = _mm256_set1_epi16(0x7c00);
            let magnitude = _mm256_or_si256(_mm256_slli_epi16::<3>(magnitude), all_but_mantissa);
            shifted = _mm256_mask_mov_epi16(shifted, other, magnitude);
        }
        // The sign from x, all else from what was shifted.
        _mm256_ternarylogic_epi32::<0b1101_1000>(x, shifted, _mm256_set1_epi16(MAGNITUDE))
    }
}

/// The largest magnitude of a block of stored rows, as the bits of bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn largest_magnitude(from: Stored, rows: &Range<usize>, cols: &Range<usize>) -> i16 {
    let mut largest = [_mm512_setzero_si512(); 4];
    for row in rows.clone() {
        let mut groups = from.row(row, cols).chunks_exact(4 * 2 * LANES);
        for values in &mut groups {
            for (largest, values) in largest.iter_mut().zip(values.chunks_exact(2 * LANES)) {
                // SAFETY: a chunk holds as many values as a vector.
                let x = unsafe { _mm512_loadu_si512(values.as_ptr().cast()) };
                *largest = _mm512_max_epi16(*largest, _mm512_and_si512(x, _mm512_set1_epi16(MAGNITUDE)));
            }
        }
        for values in groups.remainder().chunks(LANES) {
            let magnitude = _mm256_and_si256(load(values), _mm256_set1_epi16(MAGNITUDE));
            largest[0] = _mm512_max_epi16(largest[0], _mm512_zextsi256_si512(magnitude));
        }
    }
    let [a, b, c, d] = largest;
    let largest = _mm512_max_epi16(_mm512_max_epi16(a, b), _mm512_max_epi16(c, d));
    let (low, high) = (_mm512_castsi512_si256(largest), _mm512_extracti64x4_epi64::<1>(largest));
    let largest: [i16; LANES] = {
        let mut lanes = [0; LANES];
        // SAFETY: the array is as large as the vector.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), _mm256_max_epi16(low, high)) };
        lanes
    };
    largest.into_iter().fold(0, i16::max)
}

/// Turns up to CHUNK values each of up to 64 lines into `[k][32]` units of two neighbouring lines.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn transpose(from: Stored, lines: &Range<usize>, ks: &Range<usize>, units: &mut [u32], shift: Shift) {
    for (group, start) in lines.clone().step_by(LANES).enumerate() {
        let rows: [__m256i; LANES] = std::array::from_fn(|line| match start + line < lines.end {
            true => shift.apply(load(from.row(start + line, ks))),
            false => _mm256_setzero_si256(),
        });
        let (first, last) = (transpose_half(&rows[..8]), transpose_half(&rows[8..]));
        for (k, units) in units.chunks_exact_mut(B_LINES / 2).enumerate() {
            let (a, b) = (first[k % 8], last[k % 8]);
            let row = match k < 8 {
                true => _mm256_permute2x128_si256::<0x20>(a, b),
                false => _mm256_permute2x128_si256::<0x31>(a, b),
            };
            store(row, &mut units[group * (LANES / 2)..][..LANES / 2]);
        }
    }
}

/// Of eight rows of sixteen values makes eight of two columns each: column k in the lower half, k + 8 in the upper.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn transpose_half(rows: &[__m256i]) -> [__m256i; 8] {
    // Pairs of rows, pairs of pairs, pairs of fours, inside each half of a vector.
    let pairs: [__m256i; 8] = std::array::from_fn(|i| {
        let (a, b) = (rows[i / 2 * 2], rows[i / 2 * 2 + 1]);
        if i % 2 == 0 { _mm256_unpacklo_epi16(a, b) } else { _mm256_unpackhi_epi16(a, b) }
    });
    let fours: [__m256i; 8] = std::array::from_fn(|i| {
        let at = i / 4 * 4 + i % 4 / 2;
        let (a, b) = (pairs[at], pairs[at + 2]);
        if i % 2 == 0 { _mm256_unpacklo_epi32(a, b) } else { _mm256_unpackhi_epi32(a, b) }
    });
    std::array::from_fn(|i| {
        let (a, b) = (fours[i / 2], fours[i / 2 + 4]);
        if i % 2 == 0 { _mm256_unpacklo_epi64(a, b) } else { _mm256_unpackhi_epi64(a, b) }
    })
}

/// Up to sixteen values, zeros behind them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn load(values: &[bf16]) -> __m256i {
    // SAFETY: a whole vector is read where there is one, else only the lanes in the mask.
    unsafe {
        match values.len() >= LANES {
            true => _mm256_loadu_si256(values.as_ptr().cast()),
            false => _mm256_maskz_loadu_epi16((1 << values.len()) - 1, values.as_ptr().cast()),
        }
    }
}

/// Writes sixteen fp16 as eight units.
#[inline]
#[target_feature(enable = "avx512f")]
fn store(x: __m256i, units: &mut [u32]) {
    assert!(units.len() >= LANES / 2);
    // SAFETY: so many units are there.
    unsafe { _mm256_storeu_si256(units.as_mut_ptr().cast(), x) }
}

/// Writes sixteen fp16 as sixteen units, each in both halves.
#[inline]
#[target_feature(enable = "avx512f")]
fn store_twice(x: __m256i, units: &mut [u32]) {
    assert!(units.len() >= LANES);
    let wide = _mm512_cvtepu16_epi32(x);
    // SAFETY: so many units are there.
    unsafe {
        _mm512_storeu_si512(units.as_mut_ptr().cast(), _mm512_or_si512(wide, _mm512_slli_epi32::<16>(wide)));
    }
}
