//! Every mask and size against the f64 reference; equal bits for any number of threads.

use super::*;
use crate::reference::attention::Attention;
use crate::testing::{assert_close, bits, in_pools, tensor, values};

/// Sizes and settings of one call; b is 2.
#[derive(Clone, Copy, Debug)]
struct Case {
    t: usize,
    s: usize,
    h: usize,
    g: usize,
    d: usize,
    mask: Mask,
    query_start: usize,
}

const BATCH: usize = 2;
const FULL: Mask = Mask { causal: false, window: None, num_global_tokens: 0 };
const CAUSAL: Mask = Mask { causal: true, ..FULL };
const PLAIN: Case = Case { t: 70, s: 70, h: 2, g: 1, d: 16, mask: CAUSAL, query_start: 0 };

impl Case {
    fn scale(&self) -> f32 {
        1.0 / (self.d as f32).sqrt()
    }

    fn q_shape(&self) -> [usize; 4] {
        [BATCH, self.t, self.h, self.d]
    }

    fn k_shape(&self) -> [usize; 4] {
        [BATCH, self.s, self.g, self.d]
    }

    /// do, q, k, v
    fn inputs(&self) -> [Vec<f64>; 4] {
        let (q, k) = (self.q_shape().iter().product(), self.k_shape().iter().product());
        [values(q, 1), values(q, 2), values(k, 3), values(k, 4)]
    }

    fn tensors(&self, [d_out, q, k, v]: &[Vec<f64>; 4], dtype: DType) -> [Tensor; 4] {
        let (q_shape, k_shape) = (self.q_shape(), self.k_shape());
        [(d_out, q_shape), (q, q_shape), (k, k_shape), (v, k_shape)]
            .map(|(values, shape)| tensor(values, &shape, dtype))
    }

    /// [o, lse, dq, dk, dv]
    fn run(&self, [d_out, q, k, v]: &[Tensor; 4]) -> [Tensor; 5] {
        let (o, lse) = forward(q, k, v, &self.mask, self.scale(), self.query_start).unwrap();
        let (dq, dk, dv) =
            backward(d_out, q, k, v, &o, &lse, &self.mask, self.scale(), self.query_start).unwrap();
        [o, lse, dq, dk, dv]
    }

    fn expected(&self, [d_out, q, k, v]: &[Vec<f64>; 4]) -> [Vec<f64>; 5] {
        let attention = Attention {
            batch: BATCH,
            num_queries: self.t,
            num_keys: self.s,
            num_heads: self.h,
            num_kv_heads: self.g,
            head_dim: self.d,
            mask: self.mask,
            scale: f64::from(self.scale()),
            query_start: self.query_start,
        };
        let (o, lse) = attention.forward(q, k, v);
        let (dq, dk, dv) = attention.backward(d_out, q, k, v);
        [o, lse, dq, dk, dv]
    }

    /// The fast body agrees with the reference, within `rel` for lse and f32 outputs.
    #[track_caller]
    fn check(&self, dtype: DType, rel: f64) {
        let inputs = self.inputs();
        let got = self.run(&self.tensors(&inputs, dtype));
        for ((got, want), name) in got.iter().zip(self.expected(&inputs)).zip(["o", "lse", "dq", "dk", "dv"])
        {
            println!("{name} of {self:?}");
            assert_close(got, &want, rel);
        }
    }
}

#[test]
fn all_masks_agree_with_the_reference_over_several_tiles() {
    for causal in [false, true] {
        for (window, num_global_tokens) in
            [(None, 0), (Some(1), 0), (Some(20), 0), (Some(20), 3), (Some(70), 80)]
        {
            let mask = Mask { causal, window, num_global_tokens };
            Case { t: 150, s: 150, mask, ..PLAIN }.check(DType::F32, 1e-4);
        }
    }
}

#[test]
fn every_number_of_heads_in_a_group_agrees_with_the_reference() {
    for (h, g) in [(1, 1), (4, 4), (4, 2), (6, 2), (4, 1)] {
        Case { h, g, ..PLAIN }.check(DType::F32, 1e-4);
    }
}

#[test]
fn odd_sizes_agree_with_the_reference() {
    for d in [1, 3, 17, 33, 64, 128] {
        Case { t: 67, s: 67, d, ..PLAIN }.check(DType::F32, 1e-4);
    }
    for t in [1, 7, 8, 9, 63, 64, 65, 129] {
        Case { t, s: t, d: 5, ..PLAIN }.check(DType::F32, 1e-4);
    }
}

#[test]
fn queries_behind_a_cache_agree_with_the_reference() {
    for (t, query_start, s) in
        [(1, 0, 1), (1, 76, 77), (1, 128, 129), (5, 61, 66), (70, 30, 100), (3, 10, 90)]
    {
        for mask in [CAUSAL, Mask { window: Some(33), num_global_tokens: 2, ..CAUSAL }] {
            Case { t, s, query_start, mask, ..PLAIN }.check(DType::F32, 1e-4);
        }
    }
}

#[test]
fn more_queries_than_keys_agree_with_the_reference_without_a_causal_mask() {
    Case { t: 75, s: 9, mask: FULL, ..PLAIN }.check(DType::F32, 1e-4);
}

/// bf16 keeps 8 bits. Each stored output is off by up to 2^-9 of itself; and the backward pass starts from a
/// rounded o: where ds = p∘(dp - Σ do∘o) cancels, as for a query that sees few keys, that error is what is left.
#[test]
fn bf16_agrees_with_the_reference_within_its_rounding() {
    for mask in [FULL, CAUSAL, Mask { causal: true, window: Some(20), num_global_tokens: 3 }] {
        Case { mask, d: 20, ..PLAIN }.check(DType::Bf16, 3e-2);
    }
}

#[test]
fn a_query_that_sees_no_key_gives_zeros_and_takes_no_part_in_gradients() {
    let mask = Mask { window: Some(3), ..FULL };
    let case = Case { t: 20, s: 10, query_start: 5, mask, ..PLAIN };
    case.check_blind_rows();
    Case { t: 20, s: 0, ..case }.check_blind_rows();
}

impl Case {
    fn check_blind_rows(&self) {
        let inputs = self.inputs();
        let tensors = self.tensors(&inputs, DType::F32);
        let [o, lse, dq, dk, dv] = self.run(&tensors).map(|tensor| tensor.to_f32_vec().unwrap());
        let sees = |t: usize| (0..self.s).any(|key| self.mask.sees(self.query_start + t, key));
        assert!((0..self.t).any(|t| !sees(t)));
        for (index, lse) in lse.iter().enumerate() {
            assert_eq!(*lse == f32::NEG_INFINITY, !sees(index % self.t), "lse {index}");
        }
        for (index, (o, dq)) in o.iter().zip(&dq).enumerate() {
            assert!(sees(index / (self.h * self.d) % self.t) || (*o, *dq) == (0.0, 0.0), "element {index}");
        }
        let [_, _, want_dq, want_dk, want_dv] = self.expected(&inputs);
        for (got, want) in [(dq, want_dq), (dk, want_dk), (dv, want_dv)] {
            assert!(got.iter().zip(&want).all(|(got, want)| (f64::from(*got) - want).abs() < 1e-4));
        }
    }
}

#[test]
fn scores_of_ten_thousand_stay_finite() {
    let case = Case { t: 70, s: 70, d: 4, ..PLAIN };
    let mut inputs = case.inputs();
    for x in &mut inputs[1] {
        *x = if *x > 0.0 { 100.0 } else { -100.0 };
    }
    for x in &mut inputs[2] {
        *x = if *x > 0.0 { 50.0 } else { -50.0 };
    }
    let outputs = case.run(&case.tensors(&inputs, DType::F32));
    let largest = outputs[1].to_f32_vec().unwrap().into_iter().fold(0.0, f32::max);
    assert!((10_000.0..10_000.0 + 70f32.ln()).contains(&largest), "{largest}");
    for output in outputs {
        assert!(output.to_f32_vec().unwrap().iter().all(|x| x.is_finite()));
    }
}

#[test]
fn nan_inputs_are_not_hidden() {
    let case = Case { t: 3, s: 3, h: 1, ..PLAIN };
    let mut inputs = case.inputs();
    inputs[1].fill(f64::NAN);
    let [o, lse, ..] = case.run(&case.tensors(&inputs, DType::F32));
    assert!(o.to_f32_vec().unwrap().iter().all(|x| x.is_nan()));
    assert!(lse.to_f32_vec().unwrap().iter().all(|x| x.is_nan()));
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for dtype in [DType::F32, DType::Bf16] {
        let case = Case { t: 200, s: 200, h: 6, g: 2, d: 24, ..PLAIN };
        let tensors = case.tensors(&case.inputs(), dtype);
        in_pools(|| case.run(&tensors).map(|tensor| bits(&tensor)));
    }
}

#[test]
fn what_does_not_fit_is_refused_with_its_reason() {
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, Device::Cpu).unwrap();
    let (q, k) = (zeros(&[1, 4, 6, 8], DType::F32), zeros(&[1, 4, 2, 8], DType::F32));
    let message = |q: &Tensor, k: &Tensor, v: &Tensor, mask: Mask, scale: f32, start: usize| {
        forward(q, k, v, &mask, scale, start).unwrap_err().to_string()
    };
    assert_eq!(
        message(&q, &zeros(&[1, 4, 4, 8], DType::F32), &zeros(&[1, 4, 4, 8], DType::F32), CAUSAL, 1.0, 0),
        "attention: q has shape [1, 4, 6, 8], expected head size of 1 or more, number of heads a multiple of k's, 4"
    );
    assert_eq!(
        message(&q, &k, &zeros(&[1, 5, 2, 8], DType::F32), CAUSAL, 1.0, 0),
        "attention: v has shape [1, 5, 2, 8], expected [1, 4, 2, 8]"
    );
    assert_eq!(
        message(&q, &zeros(&[1, 4, 2, 8], DType::Bf16), &k, CAUSAL, 1.0, 0),
        "attention: k is bf16, expected f32"
    );
    assert_eq!(
        message(&q, &k, &k, CAUSAL, 1.0, 1),
        "attention: query_start is 1 of 4 keys, expected a start whose 4 queries end within the keys"
    );
    assert_eq!(message(&q, &k, &k, CAUSAL, f32::NAN, 0), "attention: scale is NaN, expected a finite number");
    assert_eq!(
        message(&q, &k, &k, Mask { window: Some(0), ..FULL }, 1.0, 0),
        "attention: window is 0, expected at least 1, or no window"
    );
    let (o, lse) = forward(&q, &k, &k, &CAUSAL, 1.0, 0).unwrap();
    let short = lse.reshape(&[1, 4, 6]).unwrap();
    assert_eq!(
        backward(&q, &q, &k, &k, &o, &short, &CAUSAL, 1.0, 0).unwrap_err().to_string(),
        "attention_backward: lse has shape [1, 4, 6], expected [1, 6, 4]"
    );
}

#[test]
fn visible_keys_are_counted_as_the_mask_sees_them() {
    for (causal, window, num_global_tokens) in [false, true]
        .into_iter()
        .flat_map(|causal| [None, Some(1), Some(3), Some(20)].map(|window| (causal, window)))
        .flat_map(|(causal, window)| [0, 2, 6].map(|globals| (causal, window, globals)))
    {
        let mask = Mask { causal, window, num_global_tokens };
        for (query, num_keys) in (0..9).flat_map(|query| (0..9).map(move |keys| (query, keys))) {
            let seen = (0..num_keys).filter(|&key| mask.sees(query, key)).count();
            assert_eq!(mask.num_visible(query, num_keys), seen, "{mask:?}, query {query}, {num_keys} keys");
        }
    }
}
