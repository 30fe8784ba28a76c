//! The AVX-512 kernel: tiles of up to 14 × 32 f32 in 28 accumulators.
//!
//! Per k: two loads of B, one broadcast for each row of A, and 28 FMAs, which is 16 loads beside 14 cycles of two
//! FMA units, so that the FMAs are the limit even when all loads come from L2.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use crate::cpu::avx512::round_to_bf16;
use crate::cpu::gemm::kernel::{Format, Kernel, Out, OutPtr, Panels};
use crate::cpu::gemm::pack::CHUNK;

pub(super) const ROWS: usize = 14;
pub(super) const COLS: usize = 32;
pub(super) const A_WIDTH: usize = 16;
pub(super) const LANES: usize = 16;

pub(super) const KERNEL: Kernel =
    Kernel { rows: ROWS, cols: COLS, a_width: A_WIDTH, b_width: COLS, format: Format::F32, run };

/// # Safety
/// The processor must have AVX-512 F, BW, DQ and VL; the panels must hold what [`Panels`] says, and `out` must be
/// writable as [`Out`] says.
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
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
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
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn tile<const R: usize, const V: usize, const K_INNER: bool>(panels: Panels, out: Out) {
    let (chunk_step, row_step, k_step) =
        if K_INNER { (R * CHUNK, CHUNK, 1) } else { (CHUNK * A_WIDTH, 1, A_WIDTH) };
    let mut sums = [[_mm512_setzero_ps(); V]; R];
    let (mut a, mut b) = (panels.a.cast::<f32>(), panels.b.cast::<f32>());
    let mut left = panels.k;
    while left > 0 {
        let len = left.min(CHUNK);
        for k in 0..len {
            // SAFETY: the panels hold `panels.k` units along K in the order that the steps describe.
            unsafe {
                let b: [__m512; V] = std::array::from_fn(|v| _mm512_loadu_ps(b.add(k * COLS + v * LANES)));
                for (row, sums) in sums.iter_mut().enumerate() {
                    let a = _mm512_set1_ps(*a.add(row * row_step + k * k_step));
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = _mm512_fmadd_ps(a, b, *sum);
                    }
                }
            }
        }
        a = a.wrapping_add(chunk_step);
        b = b.wrapping_add(CHUNK * COLS);
        left -= len;
    }
    // SAFETY: the caller's promise.
    unsafe { store(sums, out) }
}

/// Writes a tile's sums.
///
/// They go through memory, so that this code exists once and not for each tile size: some forty cycles of thousands.
///
/// # Safety
/// `out` must be writable over R rows and `out.cols` columns, at most `V * LANES`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn store<const R: usize, const V: usize>(sums: [[__m512; V]; R], out: Out) {
    let mut rows = [const { MaybeUninit::<[__m512; V]>::uninit() }; R];
    for (row, sums) in rows.iter_mut().zip(sums) {
        row.write(sums);
    }
    // SAFETY: all rows were written; the caller's promise.
    unsafe { write_rows(rows.as_ptr().cast(), R, V, out) }
}

/// # Safety
/// `sums` must hold `num_rows` rows of `vectors` vectors; else as [`store`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn write_rows(sums: *const __m512, num_rows: usize, vectors: usize, out: Out) {
    for row in 0..num_rows {
        for v in 0..vectors {
            let lanes = out.cols.saturating_sub(v * LANES).min(LANES);
            let mask = ((1u32 << lanes) - 1) as __mmask16;
            let offset = row * out.stride + v * LANES;
            // SAFETY: the mask keeps loads and stores inside the columns that the caller promised.
            unsafe {
                let sum = *sums.add(row * vectors + v);
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
                        _mm256_mask_storeu_epi16(to, mask, round_to_bf16(sum));
                    }
                }
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn widen(x: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x)))
}
