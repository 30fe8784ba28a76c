//! The elementwise parts of attention in AVX-512. Numbers of scores are whole vectors, as panels see whole registers.

use std::arch::x86_64::*;

use crate::cpu::attention::KEY_TILE;
use crate::cpu::attention::product::{COLS, ROWS};
use crate::cpu::avx512::{LANES, softmax_weight};

const _: () = assert!(COLS == LANES);

/// As `weigh` of the forward pass.
///
/// # Safety
/// The processor must have AVX-512 F, BW, DQ and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn weigh(
    scores: &mut [f32],
    num_scores: usize,
    max: &mut [f32],
    sum: &mut [[f32; COLS]],
    o: &mut [f32],
    width: usize,
) {
    let mut shift = [0.0; ROWS];
    let mut shrink = [0.0; LANES];
    for (row, scores) in scores.chunks_exact(KEY_TILE).enumerate() {
        let mut largest = _mm512_set1_ps(max[row]);
        for scores in scores[..num_scores].as_chunks::<LANES>().0 {
            // A NaN is passed over here, as the first operand; the sums keep it.
            largest = _mm512_max_ps(load(scores), largest);
        }
        let new_max = _mm512_reduce_max_ps(largest);
        // While nothing was seen, any finite shift gives weights of 0; -inf itself would give NaN.
        shift[row] = if new_max == f32::NEG_INFINITY { 0.0 } else { new_max };
        shrink[row] = max[row] - shift[row];
        max[row] = new_max;
    }
    store(softmax_weight(load(&shrink)), &mut shrink);
    let rows = scores.chunks_exact_mut(KEY_TILE).zip(sum).zip(o.chunks_exact_mut(width));
    for (row, ((scores, sum), o)) in rows.enumerate() {
        let (shrink, shift) = (_mm512_set1_ps(shrink[row]), _mm512_set1_ps(shift[row]));
        for o in o.as_chunks_mut::<LANES>().0 {
            store(_mm512_mul_ps(load(o), shrink), o);
        }
        let mut total = _mm512_mul_ps(load(sum), shrink);
        for scores in scores[..num_scores].as_chunks_mut::<LANES>().0 {
            let weights = softmax_weight(_mm512_sub_ps(load(scores), shift));
            total = _mm512_add_ps(total, weights);
            store(weights, scores);
        }
        store(total, sum);
    }
}

/// Turns scores into p = e^(score - lse) and `ds`, which comes as do·v, into p·(do·v - delta).
///
/// # Safety
/// As [`weigh`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn rebuild_row(p: &mut [f32], ds: &mut [f32], lse: f32, delta: f32) {
    let (lse, delta) = (_mm512_set1_ps(lse), _mm512_set1_ps(delta));
    for (p, ds) in p.as_chunks_mut::<LANES>().0.iter_mut().zip(ds.as_chunks_mut::<LANES>().0) {
        let weights = softmax_weight(_mm512_sub_ps(load(p), lse));
        store(weights, p);
        store(_mm512_mul_ps(weights, _mm512_sub_ps(load(ds), delta)), ds);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(from: &[f32; LANES]) -> __m512 {
    // SAFETY: the array is as large as the vector.
    unsafe { _mm512_loadu_ps(from.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(x: __m512, to: &mut [f32; LANES]) {
    // SAFETY: the array is as large as the vector.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
}
