//! What the tests of routing share: deterministic values, comparison, gradients by central differences, thread pools.

use std::fmt::Debug;

use wattle_kernels::rng::{Philox, Purpose};
use wattle_kernels::{DType, Tensor, bf16};

/// `n` standard normal values, rounded to bf16 so that they are exact in every float dtype.
pub(crate) fn values(n: usize, seed: u64) -> Vec<f64> {
    let rng = Philox::new(seed, Purpose::Synthetic, 0);
    (0..n as u64).map(|i| bf16::from_f64(rng.normal(i)).to_f64()).collect()
}

/// A float tensor that holds `values`.
pub(crate) fn tensor(values: &[f64], shape: &[usize], dtype: DType) -> Tensor {
    if dtype == DType::Bf16 {
        let values: Vec<bf16> = values.iter().map(|&x| bf16::from_f64(x)).collect();
        return Tensor::from_slice(&values, shape).unwrap();
    }
    let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
    Tensor::from_slice(&values, shape).unwrap()
}

/// Each value of `got` lies within `rel` of `want`, relative to the larger of |want| and the root mean square of all
/// wanted values.
#[track_caller]
pub(crate) fn assert_close(got: &Tensor, want: &[f64], rel: f64) {
    let got = got.to_f32_vec().unwrap();
    assert_eq!(got.len(), want.len(), "number of values");
    let rms = (want.iter().map(|x| x * x).sum::<f64>() / want.len().max(1) as f64).sqrt();
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs();
        let bound = rel * want.abs().max(rms);
        assert!(error <= bound, "value {i}: got {got}, want {want}, off by {error:e}, allowed {bound:e}");
    }
}

/// The gradient of the scalar function `f` at `x` by central differences.
pub(crate) fn numeric_gradient(f: impl Fn(&[f64]) -> f64, x: &[f64]) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let mut at = x.to_vec();
    let mut derivative = |i: usize| {
        at[i] = x[i] + STEP;
        let above = f(&at);
        at[i] = x[i] - STEP;
        let below = f(&at);
        at[i] = x[i];
        (above - below) / (2.0 * STEP)
    };
    (0..x.len()).map(&mut derivative).collect()
}

/// Runs `f` in pools of 1, 2 and 3 threads, asserts equal results and returns them. Compare [`bits`] of tensors.
#[track_caller]
pub(crate) fn in_pools<T: PartialEq + Debug + Send>(f: impl Fn() -> T + Sync) -> T {
    let run = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(&f);
    let first = run(1);
    for threads in [2, 3] {
        assert!(run(threads) == first, "{threads} threads give other bits than one");
    }
    first
}

/// The bit patterns of a float tensor.
pub(crate) fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.to_f32_vec().unwrap().iter().map(|x| x.to_bits()).collect()
}
