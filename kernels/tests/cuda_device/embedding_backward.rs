//! The gradient of the embedding.

use wattle_kernels::ops::embedding;
use wattle_kernels::rng::{Philox, Purpose};
use wattle_kernels::{DType, Tensor};

use crate::{DTYPES, assert_close, gpu_is_here, normal, on_gpu};

/// Ids of which the first few occur often, as in text.
fn ids(t: usize, v: usize) -> Tensor {
    let rng = Philox::new(9, Purpose::Synthetic, 0);
    let ids: Vec<i32> = (0..t as u64).map(|i| (rng.uniform(i).powi(3) * v as f64) as i32).collect();
    Tensor::from_slice(&ids, &[t]).unwrap()
}

#[test]
fn rows_gain_the_gradients_of_their_tokens_as_on_the_host_and_the_same_bits_each_time() {
    if !gpu_is_here() {
        return;
    }
    // One pass of the sort and several; runs within a block's tokens and across.
    for ([t, v, d], dtype) in [[1, 7, 8], [300, 40, 6], [3000, 3000, 64], [700, 70_000, 24]]
        .into_iter()
        .flat_map(|shape| DTYPES.map(|dtype| (shape, dtype)))
    {
        let (ids, dx) = (ids(t, v), normal(&[t, d], dtype, 1));
        let (ids_there, dx_there) = (on_gpu(&ids), on_gpu(&dx));
        let before = normal(&[v, d], DType::F32, 2);
        let mut dtable = before.clone();
        embedding::backward(&dx, &ids, &mut dtable).unwrap();
        let there = || {
            let mut dtable = on_gpu(&before);
            embedding::backward(&dx_there, &ids_there, &mut dtable).unwrap();
            dtable
        };
        assert_close(&there(), &dtable);
        assert_eq!(there().to_f32_vec().unwrap(), there().to_f32_vec().unwrap());
    }
}

#[test]
fn an_id_outside_the_vocabulary_has_no_gradient() {
    if !gpu_is_here() {
        return;
    }
    let ids = Tensor::from_slice(&[-1, 9, i32::MAX], &[3]).unwrap();
    let before = normal(&[9, 16], DType::F32, 1);
    let mut dtable = on_gpu(&before);
    embedding::backward(&on_gpu(&normal(&[3, 16], DType::F32, 2)), &on_gpu(&ids), &mut dtable).unwrap();
    assert_eq!(dtable.to_f32_vec().unwrap(), before.to_f32_vec().unwrap());
}
