//! The AVX512-BF16 kernel: the tiles of the AVX-512 kernel from pairs of bf16, two products for each lane.
//!
//! The instruction takes subnormal inputs and results as zero.

use std::arch::x86_64::*;

use crate::cpu::gemm::kernel::{Format, Kernel, Out, Panels};
use crate::cpu::gemm::kernel_avx512::{A_WIDTH, COLS, LANES, ROWS, store};
use crate::cpu::gemm::pack::CHUNK;

pub(super) const KERNEL: Kernel =
    Kernel { rows: ROWS, cols: COLS, a_width: A_WIDTH, b_width: COLS, format: Format::Bf16Pairs, run };

/// # Safety
/// The processor must have AVX-512 F, BW, DQ, VL and BF16; the panels must hold what [`Panels`] says, and `out` must
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
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
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
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn tile<const R: usize, const V: usize, const K_INNER: bool>(panels: Panels, out: Out) {
    let (chunk_step, row_step, k_step) =
        if K_INNER { (R * CHUNK, CHUNK, 1) } else { (CHUNK * A_WIDTH, 1, A_WIDTH) };
    let mut sums = [[_mm512_setzero_ps(); V]; R];
    let (mut a, mut b) = (panels.a, panels.b);
    let mut left = panels.k;
    while left > 0 {
        let len = left.min(CHUNK);
        for k in 0..len {
            // SAFETY: the panels hold `panels.k` units along K in the order that the steps describe; a unit is a
            // pair of bf16, and every bit pattern of a vector is valid as bf16.
            unsafe {
                let b: [__m512bh; V] = std::array::from_fn(|v| {
                    std::mem::transmute(_mm512_loadu_si512(b.add(k * COLS + v * LANES).cast()))
                });
                for (row, sums) in sums.iter_mut().enumerate() {
                    let pair = _mm512_set1_epi32((*a.add(row * row_step + k * k_step)).cast_signed());
                    let a: __m512bh = std::mem::transmute(pair);
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = _mm512_dpbf16_ps(*sum, a, b);
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
