//! Every operation that has a body on a GPU, run on one through the public API and held against the same call on the host,
//! which the unit tests hold against the f64 reference.
//!
//! Without a GPU the tests say so and stop, unless `WATTLE_REQUIRE_CUDA=1` makes that a failure.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking")]

mod adamw;
mod attention;
mod cross_entropy;
mod embedding_backward;
mod gpu;
mod router;
mod routing_plan;

use wattle_kernels::ops::{bias, elementwise, embedding, permute, reduce, rms_norm, rope, swiglu};
use wattle_kernels::rng::{Philox, Purpose};
use wattle_kernels::{DType, Device, Error, Tensor, cuda};

use gpu::gpu_is_here;

const GPU: Device = Device::Cuda(0);
const DTYPES: [DType; 2] = [DType::F32, DType::Bf16];
/// Rows and their length: ragged, several rows a warp, a row a block.
const SHAPES: [[usize; 2]; 4] = [[1, 8], [37, 6], [70, 256], [9, 2048]];

fn normal(shape: &[usize], dtype: DType, seed: u64) -> Tensor {
    let rng = Philox::new(seed, Purpose::Synthetic, 0);
    let values: Vec<f32> =
        (0..shape.iter().product::<usize>() as u64).map(|i| rng.normal(i) as f32).collect();
    elementwise::cast(&Tensor::from_slice(&values, shape).unwrap(), dtype).unwrap()
}

fn on_gpu(tensor: &Tensor) -> Tensor {
    tensor.to_device(GPU).unwrap()
}

/// Within the rounding of the dtype, relative to the larger of each value and the root mean square of all.
#[track_caller]
fn assert_close(got: &Tensor, want: &Tensor) {
    assert_eq!((got.shape(), got.dtype(), got.device()), (want.shape(), want.dtype(), GPU));
    let rel = if want.dtype() == DType::Bf16 { 8e-3 } else { 2e-5 };
    let (got, want) = (got.to_f32_vec().unwrap(), want.to_f32_vec().unwrap());
    let rms = (want.iter().map(|x| x * x).sum::<f32>() / want.len().max(1) as f32).sqrt();
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let bound = rel * want.abs().max(rms);
        assert!((got - want).abs() <= bound, "value {i}: got {got}, want {want}");
    }
}

#[test]
fn tensors_go_to_the_device_and_come_back_as_they_were() {
    if !gpu_is_here() {
        return;
    }
    let host = normal(&[33, 65], DType::Bf16, 1);
    let there = on_gpu(&host);
    assert_eq!(there.to_f32_vec().unwrap(), host.to_f32_vec().unwrap());
    assert!(matches!(there.data::<wattle_kernels::bf16>(), Err(Error::Placement { .. })));
    let zeros = Tensor::zeros(&[1000], DType::F32, GPU).unwrap();
    assert!(zeros.to_f32_vec().unwrap().iter().all(|&x| x == 0.0));
    assert!(cuda::memory::stats(0).unwrap().peak_bytes >= 33 * 65 * 2 + 4000);
}

#[test]
fn sums_scaling_and_casts_are_those_of_the_host() {
    if !gpu_is_here() {
        return;
    }
    for (shape, dtype) in SHAPES.iter().flat_map(|shape| DTYPES.map(|dtype| (shape, dtype))) {
        let (mut a, b) = (normal(shape, dtype, 1), normal(shape, dtype, 2));
        let (mut a_there, b_there) = (on_gpu(&a), on_gpu(&b));
        let kept = a_there.clone();
        assert_close(&elementwise::add(&a_there, &b_there).unwrap(), &elementwise::add(&a, &b).unwrap());
        elementwise::add_assign(&mut a_there, &b_there).unwrap();
        elementwise::scale_assign(&mut a_there, 0.3).unwrap();
        assert_close(&kept, &a);
        elementwise::add_assign(&mut a, &b).unwrap();
        elementwise::scale_assign(&mut a, 0.3).unwrap();
        assert_close(&a_there, &a);
        let other = if dtype == DType::F32 { DType::Bf16 } else { DType::F32 };
        let (got, want) = (elementwise::cast(&b_there, other), elementwise::cast(&b, other));
        assert_close(&got.unwrap(), &want.unwrap());
        let bias_n = normal(&shape[1..], DType::F32, 3);
        let want = bias::forward(b.clone(), &bias_n).unwrap();
        assert_close(&bias::forward(b_there, &on_gpu(&bias_n)).unwrap(), &want);
    }
}

#[test]
fn rms_norm_is_that_of_the_host_with_and_without_a_gradient_to_add_to() {
    if !gpu_is_here() {
        return;
    }
    for (shape, dtype) in SHAPES.iter().flat_map(|shape| DTYPES.map(|dtype| (shape, dtype))) {
        let (x, w, dy) =
            (normal(shape, dtype, 1), normal(&shape[1..], DType::F32, 2), normal(shape, dtype, 3));
        let (x_there, w_there, dy_there) = (on_gpu(&x), on_gpu(&w), on_gpu(&dy));
        let (y, rstd) = rms_norm::forward(&x, &w, 1e-5).unwrap();
        let (y_there, rstd_there) = rms_norm::forward(&x_there, &w_there, 1e-5).unwrap();
        assert_close(&y_there, &y);
        assert_close(&rstd_there, &rstd);
        for onto in [None, Some(normal(shape, dtype, 4))] {
            let mut dw = normal(&shape[1..], DType::F32, 5);
            let mut dw_there = on_gpu(&dw);
            let onto_there = onto.as_ref().map(on_gpu);
            let dx = rms_norm::backward(&dy, &x, &w, &rstd, &mut dw, onto).unwrap();
            let dx_there =
                rms_norm::backward(&dy_there, &x_there, &w_there, &rstd_there, &mut dw_there, onto_there);
            assert_close(&dx_there.unwrap(), &dx);
            assert_close(&dw_there, &dw);
        }
    }
}

#[test]
fn swiglu_is_that_of_the_host_with_and_without_weights() {
    if !gpu_is_here() {
        return;
    }
    for ([r, f], dtype) in SHAPES.into_iter().flat_map(|shape| DTYPES.map(|dtype| (shape, dtype))) {
        let (gate_up, dh) = (normal(&[r, 2 * f], dtype, 1), normal(&[r, f], dtype, 2));
        let (gate_up_there, dh_there) = (on_gpu(&gate_up), on_gpu(&dh));
        for weights in [None, Some(normal(&[r], DType::F32, 3))] {
            let weights_there = weights.as_ref().map(on_gpu);
            let h = swiglu::forward(&gate_up, weights.as_ref()).unwrap();
            assert_close(&swiglu::forward(&gate_up_there, weights_there.as_ref()).unwrap(), &h);
            let want = swiglu::backward(dh.clone(), gate_up.clone(), weights.as_ref()).unwrap();
            let got = swiglu::backward(dh_there.clone(), gate_up_there.clone(), weights_there.as_ref());
            let got = got.unwrap();
            assert_close(&got.h_rf, &want.h_rf);
            assert_close(&got.dgate_up_r2f, &want.dgate_up_r2f);
            assert_eq!(got.dweights_r.is_some(), want.dweights_r.is_some());
            if let (Some(got), Some(want)) = (got.dweights_r, want.dweights_r) {
                assert_close(&got, &want);
            }
        }
    }
}

#[test]
fn rope_turns_there_and_back_as_on_the_host() {
    if !gpu_is_here() {
        return;
    }
    let table = rope::RopeTable::new(64, 16, 1e4).unwrap();
    let table_there = table.to_device(GPU).unwrap();
    for dtype in DTYPES {
        let x = normal(&[2, 7, 3, 24], dtype, 1);
        let want = rope::forward(x.clone(), &table, 5).unwrap();
        assert_close(&rope::forward(on_gpu(&x), &table_there, 5).unwrap(), &want);
        let want = rope::backward(x.clone(), &table, 5).unwrap();
        assert_close(&rope::backward(on_gpu(&x), &table_there, 5).unwrap(), &want);
    }
}

#[test]
fn totals_and_column_sums_are_those_of_the_host() {
    if !gpu_is_here() {
        return;
    }
    for (shape, dtype) in SHAPES.iter().flat_map(|shape| DTYPES.map(|dtype| (shape, dtype))) {
        let x = normal(shape, dtype, 1);
        let x_there = on_gpu(&x);
        let (got, want) = (reduce::sum_of_squares(&x_there).unwrap(), reduce::sum_of_squares(&x).unwrap());
        assert!((got - want).abs() <= 1e-6 * want, "{got} and {want}");
        let (got, want) = (reduce::sum(&x_there).unwrap(), reduce::sum(&x).unwrap());
        assert!((got - want).abs() <= 1e-6 * (x.num_elements() as f64).sqrt(), "{got} and {want}");
        let mut dbias = normal(&shape[1..], DType::F32, 2);
        let mut dbias_there = on_gpu(&dbias);
        bias::backward(&x, &mut dbias).unwrap();
        bias::backward(&x_there, &mut dbias_there).unwrap();
        assert_close(&dbias_there, &dbias);
    }
}

#[test]
fn ids_are_looked_up_as_on_the_host_and_one_outside_gives_nan() {
    if !gpu_is_here() {
        return;
    }
    let ids = Tensor::from_slice(&[3i32, 0, 8, 8], &[4]).unwrap();
    for (from, to) in DTYPES.iter().flat_map(|&from| DTYPES.map(|to| (from, to))) {
        let table = normal(&[9, 40], from, 1);
        let want = embedding::forward(&ids, &table, to).unwrap();
        assert_close(&embedding::forward(&on_gpu(&ids), &on_gpu(&table), to).unwrap(), &want);
        let outside = on_gpu(&Tensor::from_slice(&[9i32], &[1]).unwrap());
        let x = embedding::forward(&outside, &on_gpu(&table), to).unwrap();
        assert!(x.to_f32_vec().unwrap().iter().all(|x| x.is_nan()));
    }
}

#[test]
fn rows_move_as_on_the_host() {
    if !gpu_is_here() {
        return;
    }
    let rows = Tensor::from_slice(&[3i32, -1, 0, 8, 8, 2], &[6]).unwrap();
    let token_rows = rows.reshape(&[3, 2]).unwrap();
    for dtype in DTYPES {
        let x = normal(&[9, 40], dtype, 1);
        let want = permute::gather(&x, &rows).unwrap();
        assert_close(&permute::gather(&on_gpu(&x), &on_gpu(&rows)).unwrap(), &want);
        let want = permute::gather_sum(&x, &token_rows).unwrap();
        assert_close(&permute::gather_sum(&on_gpu(&x), &on_gpu(&token_rows)).unwrap(), &want);
    }
}

#[test]
fn a_tensor_left_on_the_host_is_refused_by_name() {
    if !gpu_is_here() {
        return;
    }
    let host = normal(&[4, 4], DType::F32, 1);
    let error = elementwise::add(&on_gpu(&host), &host).unwrap_err();
    assert_eq!(error.to_string(), "add: b is on cpu, expected on cuda:0; move it with Tensor::to_device");
}
