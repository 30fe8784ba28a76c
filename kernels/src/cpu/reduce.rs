//! Sums over whole tensors on the CPU.
//!
//! Each block of a fixed number of elements is summed in a fixed number of f64 lanes, then block sums are added in
//! order.

use super::float::Float;
use super::parallel;
use super::simd::vectorised;
use crate::dtype::{DType, bf16};
use crate::error::Result;
use crate::tensor::Tensor;

/// Independent partial sums of one loop: enough to fill two AVX-512 registers of f32, or four of f64.
pub(crate) const LANES: usize = 32;

pub(crate) fn sum(x: &Tensor) -> Result<f64> {
    map_sum(x, |x| x)
}

pub(crate) fn sum_of_squares(x: &Tensor) -> Result<f64> {
    map_sum(x, |x| x * x)
}

fn map_sum(x: &Tensor, term: impl Fn(f64) -> f64 + Copy + Send + Sync) -> Result<f64> {
    Ok(match x.dtype() {
        DType::Bf16 => sum_blocks(x.data::<bf16>()?, term),
        _ => sum_blocks(x.data::<f32>()?, term),
    })
}

fn sum_blocks<T: Float>(x: &[T], term: impl Fn(f64) -> f64 + Copy + Send + Sync) -> f64 {
    let block = parallel::rows_per_block(size_of::<T>());
    let sums = parallel::map(x.chunks(block), |x| {
        vectorised(
            #[inline(always)]
            || lane_sum(x, |x: T| term(f64::from(x.load()))),
        )
    });
    sums.iter().sum()
}

/// Σ term(x) over a slice, in lanes.
#[inline(always)]
pub(crate) fn lane_sum<X: Copy, S: Copy + Default + std::ops::Add<Output = S>>(
    x: &[X],
    term: impl Fn(X) -> S,
) -> S {
    let mut lanes = [S::default(); LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = *lane + term(x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = *lane + term(x);
    }
    fold(lanes)
}

/// The lanes' sum, halves folded onto each other: the order is fixed and every fold vectorises.
#[inline(always)]
pub(crate) fn fold<S: Copy + std::ops::Add<Output = S>>(mut lanes: [S; LANES]) -> S {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = lanes[i] + lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}
