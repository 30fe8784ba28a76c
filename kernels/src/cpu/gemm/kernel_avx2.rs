//! The AVX2 and FMA kernel: tiles of up to 6 × 16 f32 in 12 accumulators.

use std::arch::x86_64::*;

use crate::cpu::gemm::kernel::{Format, Kernel, Out, Panels, write_tile};
use crate::cpu::gemm::pack::CHUNK;

const ROWS: usize = 6;
const COLS: usize = 16;
const A_WIDTH: usize = 8;
const LANES: usize = 8;

pub(super) const KERNEL: Kernel =
    Kernel { rows: ROWS, cols: COLS, a_width: A_WIDTH, b_width: COLS, format: Format::F32, run };

/// # Safety
/// The processor must have AVX2 and FMA; the panels must hold what [`Panels`] says, and `out` must be writable as
/// [`write_tile`] needs.
unsafe fn run(panels: Panels, out: Out) {
    // SAFETY: the caller's promise.
    unsafe { if panels.k_inner { by_rows::<true>(panels, out) } else { by_rows::<false>(panels, out) } }
}

/// # Safety
/// As [`run`].
#[target_feature(enable = "avx2,fma")]
unsafe fn by_rows<const K_INNER: bool>(panels: Panels, out: Out) {
    // SAFETY: the caller's promise, with the number of rows given.
    unsafe {
        match panels.rows {
            1 => tile::<1, K_INNER>(panels, out),
            2 => tile::<2, K_INNER>(panels, out),
            3 => tile::<3, K_INNER>(panels, out),
            4 => tile::<4, K_INNER>(panels, out),
            5 => tile::<5, K_INNER>(panels, out),
            _ => tile::<ROWS, K_INNER>(panels, out),
        }
    }
}

/// # Safety
/// As [`run`], with R rows.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const R: usize, const K_INNER: bool>(panels: Panels, out: Out) {
    const VECTORS: usize = COLS / LANES;
    let (chunk_step, row_step, k_step) =
        if K_INNER { (R * CHUNK, CHUNK, 1) } else { (CHUNK * A_WIDTH, 1, A_WIDTH) };
    let mut sums = [[_mm256_setzero_ps(); VECTORS]; R];
    let (mut a, mut b) = (panels.a.cast::<f32>(), panels.b.cast::<f32>());
    let mut left = panels.k;
    while left > 0 {
        let len = left.min(CHUNK);
        for k in 0..len {
            // SAFETY: the panels hold `panels.k` units along K in the order that the steps describe.
            unsafe {
                let b: [__m256; VECTORS] =
                    std::array::from_fn(|v| _mm256_loadu_ps(b.add(k * COLS + v * LANES)));
                for (row, sums) in sums.iter_mut().enumerate() {
                    let a = _mm256_set1_ps(*a.add(row * row_step + k * k_step));
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = _mm256_fmadd_ps(a, b, *sum);
                    }
                }
            }
        }
        a = a.wrapping_add(chunk_step);
        b = b.wrapping_add(CHUNK * COLS);
        left -= len;
    }
    let mut rows = [[0.0f32; COLS]; R];
    for (row, sums) in rows.iter_mut().zip(sums) {
        for (v, sum) in sums.into_iter().enumerate() {
            // SAFETY: the vectors of a row fill exactly COLS columns.
            unsafe { _mm256_storeu_ps(row.as_mut_ptr().add(v * LANES), sum) };
        }
    }
    // SAFETY: the caller's promise.
    unsafe { write_tile(&rows, out) }
}
