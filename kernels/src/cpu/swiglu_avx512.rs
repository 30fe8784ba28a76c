//! The rows of SwiGLU in AVX-512, for hidden sizes that are whole vectors.

use std::arch::x86_64::*;

use super::avx512::{LANES, sigmoid};
use super::float::Float;
use super::simd::{SimdLevel, simd_level};

/// Whether the functions here can be called for rows of `f` values.
pub(super) fn fits(f: usize) -> bool {
    simd_level() == SimdLevel::Avx512 && f.is_multiple_of(LANES)
}

/// h = silu(gate)·up·weight.
///
/// # Safety
/// The processor must have AVX-512 F, BW, DQ and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn forward_row<T: Float>((gate, up): (&[T], &[T]), weight: f32, h: &mut [T]) {
    let inputs = gate.as_chunks().0.iter().zip(up.as_chunks().0);
    for ((gate, up), h) in inputs.zip(h.as_chunks_mut().0) {
        // SAFETY: the caller's promise.
        unsafe {
            let (gate, up) = (T::load16(gate), T::load16(up));
            let silu = _mm512_mul_ps(gate, sigmoid(gate));
            T::store16(_mm512_mul_ps(_mm512_mul_ps(silu, up), _mm512_set1_ps(weight)), h);
        }
    }
}

/// Writes the gradients of gate and up, and gives the weight's.
///
/// # Safety
/// As [`forward_row`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn backward_row<T: Float>(
    dh: &[T],
    (gate, up): (&[T], &[T]),
    weight: f32,
    dgate: &mut [T],
    dup: &mut [T],
) -> f32 {
    let one = _mm512_set1_ps(1.0);
    let mut dweight = _mm512_setzero_ps();
    let inputs = dh.as_chunks().0.iter().zip(gate.as_chunks().0).zip(up.as_chunks().0);
    for (((dh, gate), up), (dgate, dup)) in
        inputs.zip(dgate.as_chunks_mut().0.iter_mut().zip(dup.as_chunks_mut().0))
    {
        // SAFETY: the caller's promise.
        unsafe {
            let (dh, gate, up) = (T::load16(dh), T::load16(gate), T::load16(up));
            let s = sigmoid(gate);
            let silu = _mm512_mul_ps(gate, s);
            let slope = _mm512_fmadd_ps(silu, _mm512_sub_ps(one, s), s);
            dweight = _mm512_fmadd_ps(dh, _mm512_mul_ps(silu, up), dweight);
            let dh = _mm512_mul_ps(dh, _mm512_set1_ps(weight));
            T::store16(_mm512_mul_ps(_mm512_mul_ps(dh, up), slope), dgate);
            T::store16(_mm512_mul_ps(dh, silu), dup);
        }
    }
    _mm512_reduce_add_ps(dweight)
}
