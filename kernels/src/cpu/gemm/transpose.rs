//! Transposing small blocks of units.

use crate::cpu::gemm::pack::CHUNK;
#[cfg(target_arch = "x86_64")]
use crate::cpu::simd::{SimdLevel, simd_level};

/// Writes `units[k * WIDTH + line] = block[line][k]`.
#[inline(always)]
pub(super) fn transpose<const WIDTH: usize>(block: &[[u32; CHUNK]; 8], units: &mut [u32]) {
    assert!(units.len() >= (CHUNK - 1) * WIDTH + 8);
    #[cfg(target_arch = "x86_64")]
    if simd_level() >= SimdLevel::Avx2 {
        for half in [0, 8] {
            // SAFETY: the processor has AVX2; eight units are read from each line at 0 and at 8 of 16, and eight are
            // written at each of 16 steps of WIDTH, which the length checked above holds.
            unsafe {
                transpose_8x8(
                    block.as_ptr().cast::<u32>().add(half),
                    units.as_mut_ptr().add(half * WIDTH),
                    WIDTH,
                )
            };
        }
        return;
    }
    for (k, out) in units.chunks_mut(WIDTH).take(CHUNK).enumerate() {
        for (out, line) in out.iter_mut().zip(block) {
            *out = line[k];
        }
    }
}

/// Transposes eight rows of eight units, CHUNK apart, into rows `stride` apart.
///
/// # Safety
/// The processor must have AVX2, and the rows must be readable and writable.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn transpose_8x8(from: *const u32, to: *mut u32, stride: usize) {
    use std::arch::x86_64::*;
    // SAFETY: the caller's promise.
    let rows: [__m256; 8] =
        std::array::from_fn(|row| unsafe { _mm256_loadu_ps(from.add(row * CHUNK).cast()) });
    // Pairs of rows, then pairs of pairs, inside each half of 128 bits; then the halves change places.
    let pairs: [__m256d; 8] = std::array::from_fn(|i| {
        let (a, b) = (rows[i / 2 * 2], rows[i / 2 * 2 + 1]);
        _mm256_castps_pd(if i % 2 == 0 { _mm256_unpacklo_ps(a, b) } else { _mm256_unpackhi_ps(a, b) })
    });
    let quads: [__m256; 8] = std::array::from_fn(|i| {
        let (a, b) = (pairs[i / 4 * 4 + i % 4 / 2], pairs[i / 4 * 4 + i % 4 / 2 + 2]);
        _mm256_castpd_ps(if i % 2 == 0 { _mm256_unpacklo_pd(a, b) } else { _mm256_unpackhi_pd(a, b) })
    });
    for k in 0..4 {
        // SAFETY: the caller's promise.
        unsafe {
            let (a, b) = (quads[k], quads[k + 4]);
            _mm256_storeu_ps(to.add(k * stride).cast(), _mm256_permute2f128_ps::<0x20>(a, b));
            _mm256_storeu_ps(to.add((k + 4) * stride).cast(), _mm256_permute2f128_ps::<0x31>(a, b));
        }
    }
}
