//! Attention in bf16, forward and backward.

use wattle_kernels::ops::attention::{self, Mask};
use wattle_kernels::{DType, Tensor};

use crate::{gpu_is_here, normal, on_gpu};

const CAUSAL: Mask = Mask { causal: true, window: None, num_global_tokens: 0 };
/// Both sides round probabilities and results to bf16, 2^-9 each: those of the forward.
const FORWARD_TOLERANCE: f32 = 2e-2;
/// Gradients of scores are differences of such, from an output that was rounded too.
const BACKWARD_TOLERANCE: f32 = 6e-2;

/// Each value within `rel` of the wanted one, relative to the larger of it and the root mean square of all.
#[track_caller]
pub fn assert_within(got: &Tensor, want: &Tensor, rel: f32) {
    assert_eq!((got.shape(), got.dtype()), (want.shape(), want.dtype()));
    let (got, want) = (got.to_f32_vec().unwrap(), want.to_f32_vec().unwrap());
    let rms = (want.iter().map(|x| x * x).sum::<f32>() / want.len().max(1) as f32).sqrt();
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let bound = rel * want.abs().max(rms);
        assert!((got - want).abs() <= bound, "value {i}: got {got}, want {want}");
    }
}

/// Shapes are `[b, t, h, d]` of the queries and `[s, g]` of the keys.
#[track_caller]
fn check(q: [usize; 4], [s, g]: [usize; 2], mask: &Mask, query_start: usize) {
    let [b, _, _, d] = q;
    let [q, k, v, d_out] = [q, [b, s, g, d], [b, s, g, d], q];
    let [q, k, v, d_out] =
        [(q, 1), (k, 2), (v, 3), (d_out, 4)].map(|(shape, seed)| normal(&shape, DType::Bf16, seed));
    let [q_there, k_there, v_there, d_out_there] = [&q, &k, &v, &d_out].map(on_gpu);
    let scale = (d as f32).sqrt().recip();
    let (o, lse) = attention::forward(&q, &k, &v, mask, scale, query_start).unwrap();
    let (o_there, lse_there) =
        attention::forward(&q_there, &k_there, &v_there, mask, scale, query_start).unwrap();
    assert_within(&o_there, &o, FORWARD_TOLERANCE);
    assert_within(&lse_there, &lse, 1e-3);
    let want = attention::backward(&d_out, &q, &k, &v, &o, &lse, mask, scale, query_start).unwrap();
    let got = attention::backward(
        &d_out_there,
        &q_there,
        &k_there,
        &v_there,
        &o_there,
        &lse_there,
        mask,
        scale,
        query_start,
    );
    let got = got.unwrap();
    for (got, want) in [(&got.0, &want.0), (&got.1, &want.1), (&got.2, &want.2)] {
        assert_within(got, want, BACKWARD_TOLERANCE);
    }
}

#[test]
fn every_head_size_is_that_of_the_host_with_keys_shared_by_heads() {
    if !gpu_is_here() {
        return;
    }
    for d in [32, 64, 96, 128] {
        check([2, 150, 4, d], [150, 2], &CAUSAL, 0);
    }
}

#[test]
fn windows_global_tokens_and_both_directions_are_those_of_the_host() {
    if !gpu_is_here() {
        return;
    }
    check([1, 140, 2, 64], [140, 2], &Mask::default(), 0);
    check([1, 260, 2, 32], [260, 1], &Mask { window: Some(70), ..CAUSAL }, 0);
    check([1, 200, 1, 32], [200, 1], &Mask { causal: false, window: Some(20), num_global_tokens: 3 }, 0);
}

#[test]
fn queries_at_the_end_of_a_cache_see_the_keys_before_them() {
    if !gpu_is_here() {
        return;
    }
    check([2, 1, 4, 64], [200, 2], &CAUSAL, 199);
    check([1, 70, 2, 64], [200, 2], &CAUSAL, 130);
}

#[test]
fn what_the_kernels_do_not_serve_is_refused() {
    if !gpu_is_here() {
        return;
    }
    let message = |d: usize, dtype: DType| {
        let x = on_gpu(&normal(&[1, 3, 1, d], dtype, 1));
        attention::forward(&x, &x, &x, &CAUSAL, 1.0, 0).unwrap_err().to_string()
    };
    assert_eq!(message(64, DType::F32), "attention: q is f32, expected bf16 for attention on a GPU");
    assert!(message(48, DType::Bf16).ends_with("a head size that a GPU has kernels for: 32, 64, 96 or 128"));
}
