//! The linear layer with cross-entropy, in one chunk and in several.

use wattle_kernels::ops::cross_entropy::{self, IGNORED};
use wattle_kernels::{DType, Tensor};

use crate::attention::assert_within;
use crate::{gpu_is_here, normal, on_gpu};

const GRAD_SCALE: f32 = 0.25;

/// `rel` of losses and of gradients.
fn check([t, v, d]: [usize; 3], dtype: DType, rel: [f32; 2]) {
    let (x, w) = (normal(&[t, d], dtype, 1), normal(&[v, d], dtype, 2));
    let targets: Vec<i32> = (0..t).map(|t| if t % 3 == 1 { IGNORED } else { (t * 7 % v) as i32 }).collect();
    let targets = Tensor::from_slice(&targets, &[t]).unwrap();
    let mut dw = normal(&[v, d], DType::F32, 3);
    let mut dw_there = on_gpu(&dw);
    let [x_there, w_there, targets_there] = [&x, &w, &targets].map(on_gpu);
    let losses = cross_entropy::forward(&x, &w, &targets).unwrap();
    assert_within(&cross_entropy::forward(&x_there, &w_there, &targets_there).unwrap(), &losses, rel[0]);
    let (_, dx) = cross_entropy::forward_backward(&x, &w, &targets, GRAD_SCALE, &mut dw).unwrap();
    let (losses_there, dx_there) =
        cross_entropy::forward_backward(&x_there, &w_there, &targets_there, GRAD_SCALE, &mut dw_there)
            .unwrap();
    assert_within(&losses_there, &losses, rel[0]);
    assert_within(&dx_there, &dx, rel[1]);
    assert_within(&dw_there, &dw, rel[1]);
}

#[test]
fn losses_and_gradients_are_those_of_the_host() {
    if !gpu_is_here() {
        return;
    }
    for shape in [[1, 8, 8], [50, 304, 24], [33, 1000, 64]] {
        check(shape, DType::F32, [2e-5, 2e-4]);
        // Some processors sum products of bf16 at 11 bits; gradients pass through dlogits of 8 bits.
        check(shape, DType::Bf16, [3e-3, 2e-2]);
    }
}

/// A chunk has 8,192 rows at most.
#[test]
fn several_chunks_are_those_of_the_host() {
    if !gpu_is_here() {
        return;
    }
    check([8200, 8, 8], DType::F32, [2e-5, 2e-4]);
    check([8200, 8, 8], DType::Bf16, [3e-3, 2e-2]);
}

#[test]
fn a_target_outside_the_vocabulary_spoils_its_own_loss() {
    if !gpu_is_here() {
        return;
    }
    let (x, w) = (normal(&[3, 16], DType::Bf16, 1), normal(&[8, 16], DType::Bf16, 2));
    let targets = on_gpu(&Tensor::from_slice(&[1, 8, IGNORED], &[3]).unwrap());
    let losses = cross_entropy::forward(&on_gpu(&x), &on_gpu(&w), &targets).unwrap().to_f32_vec().unwrap();
    assert!(losses[0] > 0.0 && losses[1].is_nan() && losses[2] == 0.0, "{losses:?}");
}
