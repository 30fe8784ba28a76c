//! What the processor can do at most: the rate against which speeds are judged.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use crate::cpu::simd::{SimdLevel, simd_level};
use crate::dtype::DType;

/// Floating-point operations per second of fused multiply-adds in registers on all threads of the pool, the best of
/// a few short runs: the limit of every f32 kernel here. Where the processor multiplies bf16 natively and faster
/// ([`crate::bf16_is_fast`]), bf16 does twice that.
pub fn measure_flops(dtype: DType) -> f64 {
    const NUM_RUNS: usize = 5;
    let run = || {
        let begin = Instant::now();
        multiply_adds(200_000) / begin.elapsed().as_secs_f64()
    };
    let best = (0..NUM_RUNS).map(|_| run()).fold(0.0, f64::max);
    match dtype {
        DType::Bf16 if crate::bf16_is_fast() => 2.0 * best,
        _ => best,
    }
}

/// Runs rounds of multiply-adds in registers on every thread of the pool and gives the floating-point operations done;
/// whoever calls measures the time. A hundred thousand rounds are a few milliseconds.
pub fn multiply_adds(num_rounds: usize) -> f64 {
    let num_threads = rayon::current_num_threads();
    let flops: usize = (0..num_threads).into_par_iter().with_max_len(1).map(|_| spin(num_rounds)).sum();
    flops as f64
}

/// Runs rounds of independent multiply-adds, enough at once to hide their latency; gives the operations done.
fn spin(num_rounds: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    match simd_level() {
        // SAFETY: `simd_level` found these features on the running processor.
        SimdLevel::Avx512 => return unsafe { spin_avx512(num_rounds) },
        // SAFETY: as above.
        SimdLevel::Avx2 => return unsafe { spin_avx2(num_rounds) },
        SimdLevel::Baseline => {}
    }
    let (factor, term) = (black_box(0.5f32), black_box(0.25f32));
    let mut sums = [0.5f32; 64];
    for _ in 0..num_rounds {
        for sum in &mut sums {
            *sum = *sum * factor + term;
        }
    }
    black_box(sums);
    num_rounds * 64 * 2
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn spin_avx512(num_rounds: usize) -> usize {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_set1_ps};
    let (factor, term) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(0.25)));
    let mut sums = [_mm512_set1_ps(0.5); 16];
    for _ in 0..num_rounds {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, factor, term);
        }
    }
    black_box(sums);
    num_rounds * 16 * 16 * 2
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn spin_avx2(num_rounds: usize) -> usize {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps};
    let (factor, term) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(0.25)));
    let mut sums = [_mm256_set1_ps(0.5); 12];
    for _ in 0..num_rounds {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, factor, term);
        }
    }
    black_box(sums);
    num_rounds * 12 * 8 * 2
}
