//! Sixteen lanes of f32 in AVX-512: the arithmetic of `math` and `float` where the compiler's own vector code is too
//! slow. Every processor with AVX-512 that is in use has FMA, so rounding may differ from `math` in the last place.

use std::arch::x86_64::*;

use crate::cpu::softmax::SMALLEST_WEIGHT;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// To the nearest, ties to even, a NaN to a quiet NaN: as `bf16::from_f32`, and unlike the instruction for it, which
/// not every processor has, without taking subnormals as zero.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn round_to_bf16(x: __m512) -> __m256i {
    let bits = _mm512_castps_si512(x);
    let high = _mm512_srli_epi32::<16>(bits);
    let odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    let half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, half));
    let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    let result = _mm512_mask_or_epi32(rounded, is_nan, high, _mm512_set1_epi32(0x40));
    _mm512_cvtepi32_epi16(result)
}

/// e^x within 2 ulp, as [`math::exp`](crate::cpu::math::exp).
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn exp(x: __m512) -> __m512 {
    let of = |value: f32| _mm512_set1_ps(value);
    // The second operand comes through when one is NaN.
    let x = _mm512_min_ps(of(89.0), _mm512_max_ps(of(-104.0), x));
    let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm512_mul_ps(
        x,
        of(std::f32::consts::LOG2_E),
    ));
    let r = _mm512_fnmadd_ps(n, of(0.693_359_4), x);
    let r = _mm512_fnmadd_ps(n, of(-2.121_944_4e-4), r);
    let mut p = of(1.987_569_1e-4);
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = _mm512_fmadd_ps(p, r, of(coefficient));
    }
    let e_r = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), of(1.0));
    _mm512_scalef_ps(e_r, n)
}

/// e^x of scores less their shift, 0 where that is too small to matter: [`softmax::weight`](crate::cpu::softmax::weight).
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn softmax_weight(x: __m512) -> __m512 {
    let weight = exp(x);
    // Not less, so that NaN stays.
    _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(weight, _mm512_set1_ps(SMALLEST_WEIGHT)), weight)
}

/// 1 / (1 + e^-x) within 3 ulp.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn sigmoid(x: __m512) -> __m512 {
    let one = _mm512_set1_ps(1.0);
    let divisor = _mm512_add_ps(one, exp(_mm512_sub_ps(_mm512_setzero_ps(), x)));
    // Fourteen bits of the quotient, then twice as many; where the divisor is infinite, zero is exact already.
    let near = _mm512_rcp14_ps(divisor);
    let off = _mm512_fnmadd_ps(divisor, near, one);
    let is_infinite = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(divisor, _mm512_set1_ps(f32::INFINITY));
    _mm512_mask_mov_ps(_mm512_fmadd_ps(near, off, near), is_infinite, near)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::float::Float;
    use crate::cpu::math;
    use crate::cpu::simd::{SimdLevel, simd_level};
    use crate::dtype::bf16;

    /// Each value through `apply`; nothing where there is no AVX-512.
    fn mapped(values: &[f32], apply: unsafe fn(__m512) -> __m512) -> Vec<f32> {
        let mut results = Vec::new();
        if simd_level() == SimdLevel::Avx512 {
            for chunk in values.as_chunks::<LANES>().0 {
                let mut to = [0.0; LANES];
                // SAFETY: `simd_level` found AVX-512.
                unsafe { f32::store16(apply(f32::load16(chunk)), &mut to) };
                results.extend(to);
            }
        }
        results
    }

    fn ulps(got: f32, exact: f64) -> f64 {
        let nearest = (exact as f32).abs();
        (f64::from(got) - exact).abs()
            / (f64::from(f32::from_bits(nearest.to_bits() + 1)) - f64::from(nearest))
    }

    #[test]
    fn exp_and_sigmoid_follow_f64() {
        let xs: Vec<f32> = (0..1_600_000).map(|i| -104.0 + 192.6 * i as f32 / 1.6e6).collect();
        for (x, got) in xs.iter().zip(mapped(&xs, exp)) {
            assert!(ulps(got, f64::from(*x).exp()) <= 2.0, "{x}: {got}");
        }
        let xs: Vec<f32> = (0..1_600_000).map(|i| -85.0 + 170.0 * i as f32 / 1.6e6).collect();
        for (x, got) in xs.iter().zip(mapped(&xs, sigmoid)) {
            assert!(ulps(got, 1.0 / (1.0 + (-f64::from(*x)).exp())) <= 3.0, "{x}: {got}");
        }
    }

    #[test]
    fn the_extremes_are_those_of_math() {
        let mut xs = [0.0; LANES];
        let extremes =
            [0.0, -0.0, -104.0, -1e4, f32::NEG_INFINITY, 88.73, 1e4, f32::INFINITY, f32::NAN, f32::MIN];
        xs[..extremes.len()].copy_from_slice(&extremes);
        for (x, got) in xs.iter().zip(mapped(&xs, exp)) {
            assert!(got == math::exp(*x) || got.is_nan() && x.is_nan(), "{x}: {got}");
        }
        for (x, got) in xs.iter().zip(mapped(&xs, sigmoid)) {
            assert!((got - math::sigmoid(*x)).abs() <= 1e-38 || got.is_nan() && x.is_nan(), "{x}: {got}");
        }
    }

    #[test]
    fn bf16_is_rounded_as_by_half() {
        for high in (0..=u16::MAX).step_by(3) {
            let values: [f32; LANES] =
                std::array::from_fn(|i| f32::from_bits(u32::from(high) << 16 | (i as u32 * 0x1111)));
            if simd_level() == SimdLevel::Avx512 {
                let mut to = [bf16::ZERO; LANES];
                // SAFETY: as above.
                unsafe { bf16::store16(f32::load16(&values), &mut to) };
                for (got, value) in to.iter().zip(values) {
                    assert_eq!(got.to_bits(), bf16::store(value).to_bits(), "{value}");
                }
            }
        }
    }
}
