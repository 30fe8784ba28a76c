//! Sums over whole tensors on the CPU.
//!
//! Each block of a fixed number of elements is summed in a fixed number of f64 lanes, then block sums are added in
//! order.

use std::ops::Add;

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

/// Σ term(x) over a slice in a fixed order.
///
/// The lanes stay in registers only if nothing indexes them by a run-time number: the ragged end is padded to a whole
/// chunk whose surplus terms are left out, and lanes are folded by halves of constant length.
#[inline(always)]
pub(crate) fn lane_sum<X: Copy + Default, S: Copy + Default + Add<Output = S>>(
    x: &[X],
    term: impl Fn(X) -> S,
) -> S {
    let mut lanes = [S::default(); LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = lanes[i] + term(chunk[i]);
        }
    }
    if !rest.is_empty() {
        let mut padded = [X::default(); LANES];
        padded[..rest.len()].copy_from_slice(rest);
        for i in 0..LANES {
            lanes[i] = lanes[i] + if i < rest.len() { term(padded[i]) } else { S::default() };
        }
    }
    let [a, b, c, d] = halve::<S, 8, 4>(halve::<S, 16, 8>(halve::<S, LANES, 16>(lanes)));
    (a + c) + (b + d)
}

/// Adds the upper half of an array to the lower; M is N / 2.
#[inline(always)]
fn halve<S: Copy + Add<Output = S>, const N: usize, const M: usize>(x: [S; N]) -> [S; M] {
    std::array::from_fn(
        #[inline(always)]
        |i| x[i] + x[M + i],
    )
}
