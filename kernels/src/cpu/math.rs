//! Elementary functions that vectorise: straight-line f32 arithmetic, no table, no branch, no library call.
//!
//! Multiplications and additions are separate on purpose: `f32::mul_add` is a slow library call where the
//! processor has no FMA, and without it the results are the same bits on every vector unit.

/// e^x within 2 ulp; 0 at -104 and below, infinity above the largest finite result, NaN for NaN.
///
/// x = n·ln2 + r with |r| <= ln2 / 2; e^x = 2^n·e^r. Coefficients: Cephes `expf` (S. Moshier).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// 1.5·2^23: adding it rounds to a whole number, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln2 in two parts; the first has so few bits that its product with n is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;

    // Comparisons are written so that NaN passes through.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let whole = shifted - ROUND;
    let r = x - whole * LN2_HIGH - whole * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let e_r = p * (r * r) + r + 1.0;
    // n runs from -150 to 128, beyond one exponent field: two factors reach the subnormals and infinity.
    let half = n >> 1;
    e_r * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// x·sigmoid(x).
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

/// 2^n for -126 <= n <= 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance in units of the last place of the exact value's f32.
    fn ulps(got: f32, exact: f64) -> f64 {
        let nearest = exact as f32;
        let ulp = f64::from(f32::from_bits(nearest.to_bits() + 1)) - f64::from(nearest);
        (f64::from(got) - exact).abs() / ulp
    }

    #[test]
    fn exp_is_within_two_ulps_over_the_normal_range() {
        let mut worst = (0.0, 0.0);
        let steps = 2_000_000;
        for i in 0..=steps {
            let x = -87.3 + (88.7 + 87.3) * i as f32 / steps as f32;
            let error = ulps(exp(x), f64::from(x).exp());
            if error > worst.0 {
                worst = (error, x);
            }
        }
        assert!(worst.0 <= 2.0, "{} ulps at {}", worst.0, worst.1);
    }

    #[test]
    fn exp_of_subnormal_results_is_off_by_one_step_at_most() {
        for i in 0..10_000 {
            let x = -104.0 + 17.0 * i as f32 / 10_000.0;
            assert!(ulps(exp(x), f64::from(x).exp()) <= 2.0, "{x}");
        }
    }

    #[test]
    fn exp_of_the_extremes_is_exact() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        for x in [-104.0, -1e4, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(exp(x).to_bits(), 0, "{x}");
        }
        for x in [88.73, 89.0, 1e4, f32::MAX, f32::INFINITY] {
            assert_eq!(exp(x), f32::INFINITY, "{x}");
        }
        assert!(exp(88.722).is_finite());
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(-f32::NAN).is_nan());
    }

    #[test]
    fn sigmoid_and_silu_follow_f64() {
        for i in -2000..=2000 {
            let x = i as f32 / 25.0;
            let exact = 1.0 / (1.0 + (-f64::from(x)).exp());
            assert!((f64::from(sigmoid(x)) - exact).abs() <= 4e-7 * exact, "{x}");
            assert!(
                (f64::from(silu(x)) - f64::from(x) * exact).abs() <= 5e-7 * (f64::from(x) * exact).abs(),
                "{x}"
            );
        }
        assert_eq!((sigmoid(f32::INFINITY), sigmoid(f32::NEG_INFINITY)), (1.0, 0.0));
        assert!(silu(f32::NAN).is_nan());
    }
}
