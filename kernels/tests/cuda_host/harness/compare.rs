//! Deterministic inputs, and comparison with the reference.

use wattle_kernels::bf16;
use wattle_kernels::rng::{Philox, Purpose};

use super::{Buffer, Float};

/// `n` standard normal values, rounded to bf16 so that they are exact in every float type.
pub fn values(n: usize, seed: u64) -> Vec<f64> {
    let rng = Philox::new(seed, Purpose::Synthetic, 0);
    (0..n as u64).map(|i| bf16::from_f64(rng.normal(i)).to_f64()).collect()
}

/// `n` whole numbers below `bound`.
pub fn indices(n: usize, bound: usize, seed: u64) -> Vec<i32> {
    let rng = Philox::new(seed, Purpose::Synthetic, 1);
    (0..n as u64).map(|i| rng.below(i, bound as u64) as i32).collect()
}

/// Each value of `got` lies within `rel` of `want`, relative to the larger of |want| and the root mean square of all
/// wanted values (a sum that cancels is as exact as its terms, not as its result).
#[track_caller]
pub fn assert_close<T: Float>(got: &Buffer<T>, want: &[f64], rel: f64) {
    let got = got.read();
    assert_eq!(got.len(), want.len(), "number of values");
    let rms = (want.iter().map(|x| x * x).sum::<f64>() / want.len().max(1) as f64).sqrt();
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (got.to_f64() - want).abs();
        let bound = rel * want.abs().max(rms);
        assert!(
            error <= bound,
            "value {i}: got {}, want {want}, off by {error:e}, allowed {bound:e}",
            got.to_f64()
        );
    }
}

/// The bit patterns of the values, widened to f64 without loss.
#[track_caller]
pub fn bits<T: Float>(buffer: &Buffer<T>) -> Vec<u64> {
    buffer.read().iter().map(|x| x.to_f64().to_bits()).collect()
}
