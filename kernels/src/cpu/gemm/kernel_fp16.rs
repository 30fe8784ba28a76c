//! The AVX512-FP16 kernel: tiles of up to 14 × 64 from bf16 operands packed as scaled fp16, at twice the rate of f32.
//!
//! Packing shifts the exponents of a panel by one amount, so that its largest value lies near 16 and what bf16 holds
//! is held by fp16 exactly (`pack_fp16`). Products are summed in fp16 over 64 neighbours along K at most, which cannot
//! overflow, and these sums in f32, where the shifts are undone. A sum in fp16 is rounded 64 times at 11 bits while it
//! grows: for operands without order an error near 2^-9 of its size, as bf16 operands carry anyway.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use crate::cpu::gemm::kernel::{Format, Kernel, Out, OutPtr, Panels};
use crate::cpu::gemm::kernel_avx512::{A_WIDTH, ROWS, widen};
use crate::cpu::gemm::pack::CHUNK;

const COLS: usize = 64;
const B_WIDTH: usize = COLS / 2;
/// Columns in one vector of fp16.
const LANES: usize = 32;
/// Columns in one vector of f32.
const WIDE_LANES: usize = 16;
/// Chunks along K that are summed in fp16.
const FP16_CHUNKS: usize = 4;

pub(super) const KERNEL: Kernel =
    Kernel { rows: ROWS, cols: COLS, a_width: A_WIDTH, b_width: B_WIDTH, format: Format::Fp16, run };

/// # Safety
/// The processor must have AVX-512 F, BW, DQ, VL, FP16 and BF16; the panels must hold what [`Panels`] says, and `out` must
/// be writable as [`Out`] says.
unsafe fn run(panels: Panels, out: Out) {
    // SAFETY: the caller's promise.
    unsafe {
        match (panels.k_inner, out.cols <= LANES) {
            (true, false) => by_rows::<2, true>(panels, out),
            (false, false) => by_rows::<2, false>(panels, out),
            (true, true) => by_rows::<1, true>(panels, out),
            (false, true) => by_rows::<1, false>(panels, out),
        }
    }
}

/// # Safety
/// As [`run`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512fp16")]
unsafe fn by_rows<const V: usize, const K_INNER: bool>(panels: Panels, out: Out) {
    // SAFETY: the caller's promise, with the number of rows given.
    unsafe {
        match panels.rows {
            1 => tile::<1, V, K_INNER>(panels, out),
            2 => tile::<2, V, K_INNER>(panels, out),
            3 => tile::<3, V, K_INNER>(panels, out),
            4 => tile::<4, V, K_INNER>(panels, out),
            5 => tile::<5, V, K_INNER>(panels, out),
            6 => tile::<6, V, K_INNER>(panels, out),
            7 => tile::<7, V, K_INNER>(panels, out),
            8 => tile::<8, V, K_INNER>(panels, out),
            9 => tile::<9, V, K_INNER>(panels, out),
            10 => tile::<10, V, K_INNER>(panels, out),
            11 => tile::<11, V, K_INNER>(panels, out),
            12 => tile::<12, V, K_INNER>(panels, out),
            13 => tile::<13, V, K_INNER>(panels, out),
            _ => tile::<ROWS, V, K_INNER>(panels, out),
        }
    }
}

/// # Safety
/// As [`run`], with R rows, and at most V vectors of columns to write.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512fp16")]
unsafe fn tile<const R: usize, const V: usize, const K_INNER: bool>(panels: Panels, out: Out) {
    let (chunk_step, row_step, k_step) =
        if K_INNER { (R * CHUNK, CHUNK, 1) } else { (CHUNK * A_WIDTH, 1, A_WIDTH) };
    // SAFETY: both panels start with a line that holds their scale.
    let scale = unsafe { f32::from_bits(*panels.a) * f32::from_bits(*panels.b) };
    let (mut a, mut b) = (panels.a.wrapping_add(CHUNK), panels.b.wrapping_add(CHUNK));
    let mut wide = [const { MaybeUninit::<[[__m512; 2]; V]>::uninit() }; R];
    let mut left = panels.k;
    let mut add = false;
    loop {
        let mut sums = [[_mm512_setzero_ph(); V]; R];
        for _ in 0..FP16_CHUNKS {
            let len = left.min(CHUNK);
            for k in 0..len {
                // SAFETY: the panels hold `panels.k` units along K in the order that the steps describe; a unit of A
                // is one fp16 twice, a line of B is V vectors of fp16, and every bit pattern is valid as fp16.
                unsafe {
                    let b: [__m512h; V] = std::array::from_fn(|v| {
                        let at = b.add(k * B_WIDTH + v * WIDE_LANES);
                        _mm512_castsi512_ph(_mm512_loadu_si512(at.cast()))
                    });
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let twice = _mm512_set1_epi32((*a.add(row * row_step + k * k_step)).cast_signed());
                        for (sum, b) in sums.iter_mut().zip(b) {
                            *sum = _mm512_fmadd_ph(_mm512_castsi512_ph(twice), b, *sum);
                        }
                    }
                }
            }
            a = a.wrapping_add(chunk_step);
            b = b.wrapping_add(CHUNK * B_WIDTH);
            left -= len;
        }
        // Through memory, so that what follows exists once and not for each tile size.
        let mut stored = [const { MaybeUninit::<[__m512h; V]>::uninit() }; R];
        for (stored, sums) in stored.iter_mut().zip(sums) {
            stored.write(sums);
        }
        let sums = Sums { fp16: stored.as_ptr().cast(), wide: wide.as_mut_ptr().cast(), add, scale };
        if left == 0 {
            // SAFETY: all R rows of V vectors were stored, and widened before if `add`; the caller's promise.
            return unsafe { finish(sums, R, V, out) };
        }
        // SAFETY: as above.
        unsafe { widen_sums(sums, R * V) };
        add = true;
    }
}

/// The sums of a tile: those in fp16 over the last units along K, and those in f32 over what lay before.
struct Sums {
    fp16: *const __m512h,
    /// Two vectors for each in fp16.
    wide: *mut __m512,
    /// Whether `wide` has been written.
    add: bool,
    scale: f32,
}

impl Sums {
    /// The sum of both, for a half of a vector of fp16.
    ///
    /// # Safety
    /// The vector must exist, and the processor must have AVX512-FP16.
    #[inline]
    #[target_feature(enable = "avx512f,avx512fp16")]
    unsafe fn total(&self, vector: usize, half: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let sum = _mm256_loadu_si256(self.fp16.add(vector).cast::<__m256i>().add(half));
            let sum = _mm512_cvtxph_ps(_mm256_castsi256_ph(sum));
            let scale = _mm512_set1_ps(self.scale);
            match self.add {
                true => _mm512_fmadd_ps(sum, scale, *self.wide.add(2 * vector + half)),
                false => _mm512_mul_ps(sum, scale),
            }
        }
    }
}

/// Adds the fp16 sums of `len` vectors to the wide ones.
///
/// # Safety
/// So many vectors must exist, and the processor must have AVX512-FP16.
#[target_feature(enable = "avx512f,avx512fp16")]
unsafe fn widen_sums(sums: Sums, len: usize) {
    for vector in 0..len {
        for half in 0..2 {
            // SAFETY: the caller's promise.
            unsafe { *sums.wide.add(2 * vector + half) = sums.total(vector, half) };
        }
    }
}

/// Writes the sums of a tile of `rows` rows of `vectors` vectors of fp16.
///
/// # Safety
/// The sums must be those of such a tile; else as [`run`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512fp16,avx512bf16")]
unsafe fn finish(sums: Sums, rows: usize, vectors: usize, out: Out) {
    let masks: [__mmask16; 4] = std::array::from_fn(|v| {
        let lanes = out.cols.saturating_sub(v * WIDE_LANES).min(WIDE_LANES);
        ((1u32 << lanes) - 1) as __mmask16
    });
    for row in 0..rows {
        for (v, mask) in masks.into_iter().enumerate().take(2 * vectors) {
            let offset = row * out.stride + v * WIDE_LANES;
            // SAFETY: the caller's promise; the mask keeps loads and stores inside the columns.
            unsafe {
                let sum = sums.total(row * vectors + v / 2, v % 2);
                match out.to {
                    OutPtr::F32(to) => {
                        let to = to.wrapping_add(offset);
                        let sum = match out.accumulate {
                            true => _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), sum),
                            false => sum,
                        };
                        _mm512_mask_storeu_ps(to, mask, sum);
                    }
                    OutPtr::Bf16(to) => {
                        let to = to.wrapping_add(offset).cast::<i16>();
                        let sum = match out.accumulate {
                            true => _mm512_add_ps(widen(_mm256_maskz_loadu_epi16(mask, to)), sum),
                            false => sum,
                        };
                        // The instruction writes subnormal results as zero.
                        let rounded: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(sum));
                        _mm256_mask_storeu_epi16(to, mask, rounded);
                    }
                }
            }
        }
    }
}
