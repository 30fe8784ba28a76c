//! The rate of multiply-adds: what bounds every product, measured by a loop of the kernels' own instruction in
//! registers.

use std::hint::black_box;
use std::time::Instant;

use crate::cpu::gemm::{Format, bf16_format};
use crate::cpu::simd::{SimdLevel, simd_level};
use crate::dtype::DType;

/// Floating-point operations per second of multiply-adds in registers on all threads of the pool, the best of forty runs
/// of about a millisecond. For bf16 it is the instruction that the bf16 products use: where they widen to f32, both
/// rates are those of one instruction.
pub fn measure_flops(dtype: DType) -> f64 {
    let instruction = Instruction::of(dtype);
    best_rate(|| rayon::broadcast(|_| instruction.spin(NUM_ROUNDS)).into_iter().sum())
}

/// As [`measure_flops`], on the calling thread alone.
pub fn measure_flops_of_one_thread(dtype: DType) -> f64 {
    let instruction = Instruction::of(dtype);
    best_rate(|| instruction.spin(NUM_ROUNDS))
}

/// The instruction that multiplies operands of this dtype here, as the processor's manual calls it.
pub fn instruction(dtype: DType) -> &'static str {
    Instruction::of(dtype).name()
}

/// Rounds of one run: about a millisecond.
const NUM_ROUNDS: usize = 400_000;

fn best_rate(run: impl Fn() -> f64) -> f64 {
    const NUM_RUNS: usize = 40;
    let rate = || {
        let begin = Instant::now();
        run() / begin.elapsed().as_secs_f64()
    };
    (0..NUM_RUNS).map(|_| rate()).fold(0.0, f64::max)
}

/// A multiply-add that a matrix kernel is built on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instruction {
    /// A product and a sum in f32, as the build target has them.
    Baseline,
    Fma256,
    Fma512,
    DotBf16,
    FmaFp16,
}

impl Instruction {
    fn of(dtype: DType) -> Self {
        match (dtype, bf16_format(), simd_level()) {
            (DType::Bf16, Format::Bf16Pairs, _) => Instruction::DotBf16,
            (DType::Bf16, Format::Fp16, _) => Instruction::FmaFp16,
            (_, _, SimdLevel::Avx512) => Instruction::Fma512,
            (_, _, SimdLevel::Avx2) => Instruction::Fma256,
            (_, _, SimdLevel::Baseline) => Instruction::Baseline,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Instruction::Baseline => "multiply and add, baseline",
            Instruction::Fma256 => "vfmadd231ps ymm",
            Instruction::Fma512 => "vfmadd231ps zmm",
            Instruction::DotBf16 => "vdpbf16ps zmm",
            Instruction::FmaFp16 => "vfmadd231ph zmm",
        }
    }

    /// Runs rounds of independent multiply-adds, enough at once to hide their latency; gives the operations done.
    fn spin(self, num_rounds: usize) -> f64 {
        let flops_a_round = match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `of` chose what the running processor has.
            Instruction::Fma256 => unsafe { x86::fma_256(num_rounds) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Instruction::Fma512 => unsafe { x86::fma_512(num_rounds) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Instruction::DotBf16 => unsafe { x86::dot_bf16(num_rounds) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Instruction::FmaFp16 => unsafe { x86::fma_fp16(num_rounds) },
            _ => baseline(num_rounds),
        };
        (num_rounds * flops_a_round) as f64
    }
}

/// FLOPs of a round, as the loops of [`x86`].
fn baseline(num_rounds: usize) -> usize {
    let (factor, term) = (black_box(0.5f32), black_box(0.25f32));
    let mut sums = [0.5f32; 64];
    for _ in 0..num_rounds {
        for sum in &mut sums {
            *sum = *sum * factor + term;
        }
    }
    black_box(sums);
    64 * 2
}

/// Loops of one instruction on independent registers. Each gives the FLOPs of a round.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn fma_256(num_rounds: usize) -> usize {
        let (factor, term) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(0.25)));
        let mut sums = [_mm256_set1_ps(0.5); 12];
        for _ in 0..num_rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, factor, term);
            }
        }
        black_box(sums);
        12 * 8 * 2
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn fma_512(num_rounds: usize) -> usize {
        let (factor, term) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(0.25)));
        let mut sums = [_mm512_set1_ps(0.5); 16];
        for _ in 0..num_rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, term);
            }
        }
        black_box(sums);
        16 * 16 * 2
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn dot_bf16(num_rounds: usize) -> usize {
        // Two bf16 of 2^-8 in each lane: the sums stay finite, and no value is subnormal.
        let pair = _mm512_set1_epi32(black_box(0x3b80_3b80));
        // SAFETY: every bit pattern of a vector is valid as bf16.
        let pair: __m512bh = unsafe { std::mem::transmute(pair) };
        let mut sums = [_mm512_set1_ps(0.5); 16];
        for _ in 0..num_rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, pair, pair);
            }
        }
        black_box(sums);
        16 * 32 * 2
    }

    #[target_feature(enable = "avx512f,avx512fp16")]
    pub(super) fn fma_fp16(num_rounds: usize) -> usize {
        // 0.5 and 0.25 in fp16, twice in each lane of 32 bits.
        let factor = _mm512_castsi512_ph(_mm512_set1_epi32(black_box(0x3800_3800)));
        let term = _mm512_castsi512_ph(_mm512_set1_epi32(black_box(0x3400_3400)));
        let mut sums = [factor; 16];
        for _ in 0..num_rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ph(*sum, factor, term);
            }
        }
        black_box(sums);
        16 * 32 * 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A loop that the compiler has emptied, or that counts wrongly, runs faster than any processor: no core does 10^13
    /// operations a second.
    #[test]
    fn rates_are_those_of_a_processor() {
        for dtype in [DType::F32, DType::Bf16] {
            let rate = measure_flops_of_one_thread(dtype);
            assert!(rate > 0.0 && rate < 1e13, "{dtype}: {rate}");
        }
    }

    #[test]
    fn products_that_widen_bf16_share_the_instruction_of_f32() {
        let same = Instruction::of(DType::Bf16) == Instruction::of(DType::F32);
        assert_eq!(same, bf16_format() == Format::F32);
    }
}
