//! The steps of a softmax over one row that attention and cross-entropy share. They run inside `vectorised`.
//!
//! Maxima and sums are kept in N lanes, N at least the width of a register: a fixed order, and no dependence of
//! one value on the one before.

use crate::cpu::math::exp;

/// Weights below this are 0: beside the largest weight, 1, they are lost in every f32 sum, but products with them
/// reach the subnormal numbers, which slow a processor's multiplications down ten times and more.
pub(crate) const SMALLEST_WEIGHT: f32 = 8.271_806e-25; // 2^-80

/// e^x of a score less its shift, or 0 when that is too small to matter.
#[inline(always)]
pub(crate) fn weight(x: f32) -> f32 {
    let weight = exp(x);
    if weight < SMALLEST_WEIGHT { 0.0 } else { weight }
}

/// The largest of `values` and `floor`. NaNs are passed over here; the sums keep them.
#[inline(always)]
pub(crate) fn max<const N: usize>(values: &[f32], floor: f32) -> f32 {
    let mut lanes = [floor; N];
    let (chunks, rest) = values.as_chunks::<N>();
    for chunk in chunks {
        for lane in 0..N {
            lanes[lane] = larger(lanes[lane], chunk[lane]);
        }
    }
    if !rest.is_empty() {
        let padded: [f32; N] = pad(rest, floor);
        for lane in 0..N {
            lanes[lane] = larger(lanes[lane], padded[lane]);
        }
    }
    fold(lanes, larger)
}

/// Replaces each value by its weight e^(value - shift) and adds that to its lane of `sum`.
#[inline(always)]
pub(crate) fn exponentiate<const N: usize>(values: &mut [f32], shift: f32, sum: &mut [f32; N]) {
    // Lanes stay in registers only as a local array that nothing indexes by a run-time number.
    let mut lanes = *sum;
    let (chunks, rest) = values.as_chunks_mut::<N>();
    for chunk in chunks {
        for lane in 0..N {
            chunk[lane] = weight(chunk[lane] - shift);
            lanes[lane] += chunk[lane];
        }
    }
    if !rest.is_empty() {
        let mut padded: [f32; N] = pad(rest, f32::NEG_INFINITY);
        for lane in 0..N {
            padded[lane] = weight(padded[lane] - shift);
            lanes[lane] += padded[lane];
        }
        rest.copy_from_slice(&padded[..rest.len()]);
    }
    *sum = lanes;
}

/// The sum over all lanes.
#[inline(always)]
pub(crate) fn total<const N: usize>(sum: [f32; N]) -> f32 {
    fold(sum, |a, b| a + b)
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// The ragged end of a row as a whole chunk.
#[inline(always)]
fn pad<const N: usize>(rest: &[f32], with: f32) -> [f32; N] {
    let mut padded = [with; N];
    padded[..rest.len()].copy_from_slice(rest);
    padded
}

/// Combines all lanes pairwise, halves onto halves. N is a power of two.
#[inline(always)]
fn fold<const N: usize>(mut lanes: [f32; N], combine: impl Fn(f32, f32) -> f32) -> f32 {
    const { assert!(N.is_power_of_two()) };
    let mut half = N / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = combine(lanes[lane], lanes[lane + half]);
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::values;

    #[test]
    fn weights_and_their_sum_follow_f64_for_every_length() {
        for len in [1, 15, 16, 17, 40] {
            let exact = values(len, 3);
            let mut row: Vec<f32> = exact.iter().map(|&x| x as f32).collect();
            let largest = max::<16>(&row, f32::NEG_INFINITY);
            assert_eq!(f64::from(largest), exact.iter().copied().fold(f64::NEG_INFINITY, f64::max));
            let mut sum = [0.0; 16];
            exponentiate(&mut row, largest, &mut sum);
            let weights: Vec<f64> = exact.iter().map(|x| (x - f64::from(largest)).exp()).collect();
            for (got, want) in row.iter().zip(&weights) {
                assert!((f64::from(*got) - want).abs() <= 4e-7 * want);
            }
            let want: f64 = weights.iter().sum();
            assert!((f64::from(total(sum)) - want).abs() <= 1e-6 * want);
        }
    }

    #[test]
    fn no_weight_is_subnormal_and_nan_stays() {
        assert_eq!((weight(0.0), weight(f32::NEG_INFINITY), weight(-90.0)), (1.0, 0.0, 0.0));
        assert!(weight(-55.0) > 0.0);
        assert!(weight(f32::NAN).is_nan());
    }

    #[test]
    fn the_floor_is_the_maximum_of_smaller_values() {
        assert_eq!(max::<16>(&[-3.0, -2.0, f32::NAN], 1.0), 1.0);
        assert_eq!(max::<16>(&[], f32::NEG_INFINITY), f32::NEG_INFINITY);
    }
}
