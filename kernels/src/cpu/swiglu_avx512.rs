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

/// Turns dh into h, gate and up into their gradients, and gives the weight's.
///
/// # Safety
/// As [`forward_row`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn backward_row<T: Float>(dh: &mut [T], (gate, up): (&mut [T], &mut [T]), weight: f32) -> f32 {
    let (one, weight) = (_mm512_set1_ps(1.0), _mm512_set1_ps(weight));
    let mut dweight = _mm512_setzero_ps();
    let rows = dh.as_chunks_mut().0.iter_mut().zip(gate.as_chunks_mut().0).zip(up.as_chunks_mut().0);
    for ((dh_place, gate_place), up_place) in rows {
        // SAFETY: the caller's promise.
        unsafe {
            let (dh, gate, up) = (T::load16(dh_place), T::load16(gate_place), T::load16(up_place));
            let s = sigmoid(gate);
            let silu = _mm512_mul_ps(gate, s);
            let slope = _mm512_fmadd_ps(silu, _mm512_sub_ps(one, s), s);
            let h = _mm512_mul_ps(silu, up);
            dweight = _mm512_fmadd_ps(dh, h, dweight);
            let dh = _mm512_mul_ps(dh, weight);
            T::store16(_mm512_mul_ps(h, weight), dh_place);
            T::store16(_mm512_mul_ps(_mm512_mul_ps(dh, up), slope), gate_place);
            T::store16(_mm512_mul_ps(dh, silu), up_place);
        }
    }
    _mm512_reduce_add_ps(dweight)
}
