//! Rotary position embedding on the CPU, in place.

use super::float::Float;
use super::parallel;
use super::simd::vectorised;
use crate::dtype::{DType, bf16};
use crate::error::Result;
use crate::tensor::Tensor;

/// Turns x_bthd by the angles whose cosines and sines are cos_th and sin_th (t rows of rotary_dim / 2), or back.
pub(crate) fn rotate(
    x_bthd: &mut Tensor,
    cos_th: &[f32],
    sin_th: &[f32],
    half: usize,
    back: bool,
) -> Result<()> {
    let (t, h, d) = (x_bthd.shape()[1], x_bthd.shape()[2], x_bthd.last_dim());
    let sign = if back { -1.0 } else { 1.0 };
    let angles = Angles { cos: cos_th, sin: sin_th, half, sign };
    match x_bthd.dtype() {
        DType::Bf16 => rotate_blocks::<bf16>(x_bthd.data_mut()?, t, h * d, d, angles),
        _ => rotate_blocks::<f32>(x_bthd.data_mut()?, t, h * d, d, angles),
    }
    Ok(())
}

#[derive(Clone, Copy)]
struct Angles<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    /// Pairs of one head.
    half: usize,
    /// -1 turns back.
    sign: f32,
}

fn rotate_blocks<T: Float>(x: &mut [T], t: usize, row: usize, d: usize, angles: Angles) {
    if x.is_empty() || angles.half == 0 {
        return;
    }
    let rows = parallel::rows_per_block(row * size_of::<T>());
    parallel::for_each(x.chunks_mut(rows * row).enumerate(), |(block, x)| {
        vectorised(
            #[inline(always)]
            || {
                for (i, row) in x.chunks_exact_mut(row).enumerate() {
                    let at = (block * rows + i) % t * angles.half;
                    let cos = &angles.cos[at..][..angles.half];
                    let sin = &angles.sin[at..][..angles.half];
                    for head in row.chunks_exact_mut(d) {
                        let (low, high) = head.split_at_mut(angles.half);
                        rotate_head(low, high, cos, sin, angles.sign);
                    }
                }
            },
        );
    });
}

#[inline(always)]
fn rotate_head<T: Float>(low: &mut [T], high: &mut [T], cos: &[f32], sin: &[f32], sign: f32) {
    for ((low, high), (cos, sin)) in low.iter_mut().zip(high).zip(cos.iter().zip(sin)) {
        let (a, b, sin) = (low.load(), high.load(), sin * sign);
        *low = T::store(a * cos - b * sin);
        *high = T::store(b * cos + a * sin);
    }
}
