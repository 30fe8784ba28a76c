//! What the processor can do at most: the rate against which speeds are judged.

use std::time::Instant;

use rayon::prelude::*;

use crate::cpu::simd::vectorised;
use crate::dtype::DType;

/// Floating-point operations per second of fused multiply-adds in registers on all threads of the pool, the best of
/// a few short runs: the limit of every f32 kernel here. Where the processor multiplies bf16 natively and faster
/// ([`crate::bf16_is_fast`]), bf16 does twice that.
pub fn measure_flops(dtype: DType) -> f64 {
    const NUM_RUNS: usize = 5;
    let num_threads = rayon::current_num_threads();
    let run = || {
        let begin = Instant::now();
        let flops: f64 = (0..num_threads).into_par_iter().with_max_len(1).map(|_| vectorised(#[inline(always)] || burn())).sum();
        flops / begin.elapsed().as_secs_f64()
    };
    let best = (0..NUM_RUNS).map(|_| run()).fold(0.0, f64::max);
    match dtype {
        DType::Bf16 if crate::bf16_is_fast() => 2.0 * best,
        _ => best,
    }
}

/// Independent chains of multiply-adds, wide and many enough to hide their latency; gives the operations done.
#[inline(always)]
fn burn() -> f64 {
    const LANES: usize = 16;
    const CHAINS: usize = 16;
    const ROUNDS: usize = 400_000;
    let mut sums = [[1.0f32; LANES]; CHAINS];
    let (factor, term) = (std::hint::black_box(0.999_f32), std::hint::black_box(0.001_f32));
    for _ in 0..ROUNDS {
        for chain in &mut sums {
            for x in chain {
                *x = x.mul_add(factor, term);
            }
        }
    }
    std::hint::black_box(sums);
    (2 * LANES * CHAINS * ROUNDS) as f64
}
