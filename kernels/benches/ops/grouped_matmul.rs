//! The experts' products: gate and up in one, and down, with loads between half and one and a half times the mean.

use divan::Bencher;
use wattle_kernels::ops::grouped_matmul;
use wattle_kernels::{DType, Tensor};

use crate::shape::{Case, bytes, cases, flops, normals};

#[divan::bench(args = cases())]
fn gate_up_forward(bencher: Bencher, case: &Case) {
    forward(bencher, &Layer::gate_up(case));
}

#[divan::bench(args = cases())]
fn gate_up_backward_input(bencher: Bencher, case: &Case) {
    backward_input(bencher, &Layer::gate_up(case));
}

#[divan::bench(args = cases())]
fn gate_up_backward_weight(bencher: Bencher, case: &Case) {
    backward_weight(bencher, &Layer::gate_up(case));
}

#[divan::bench(args = cases())]
fn down_forward(bencher: Bencher, case: &Case) {
    forward(bencher, &Layer::down(case));
}

#[divan::bench(args = cases())]
fn down_backward_input(bencher: Bencher, case: &Case) {
    backward_input(bencher, &Layer::down(case));
}

#[divan::bench(args = cases())]
fn down_backward_weight(bencher: Bencher, case: &Case) {
    backward_weight(bencher, &Layer::down(case));
}

struct Layer {
    x_ri: Tensor,
    w_eoi: Tensor,
    y_ro: Tensor,
    offsets_e: Tensor,
    flops: usize,
}

impl Layer {
    fn gate_up(case: &Case) -> Self {
        Layer::new(case, 2 * case.hidden, case.d_model)
    }

    fn down(case: &Case) -> Self {
        Layer::new(case, case.d_model, case.hidden)
    }

    fn new(case: &Case, o: usize, i: usize) -> Self {
        let (r, e) = (case.routed_rows(), case.experts);
        let edge = |expert: usize| {
            let even = expert as f64 / e as f64;
            ((even + 0.5 * even * (even - 1.0)) * r as f64) as i32
        };
        let offsets: Vec<i32> = (0..=e).map(edge).collect();
        Layer {
            x_ri: case.tensor(&[r, i], 1),
            w_eoi: case.tensor(&[e, o, i], 2),
            y_ro: case.tensor(&[r, o], 3),
            offsets_e: Tensor::from_slice(&offsets, &[e + 1]).unwrap(),
            flops: 2 * r * o * i,
        }
    }
}

fn forward(bencher: Bencher, layer: &Layer) {
    let Layer { x_ri, w_eoi, y_ro, offsets_e, .. } = layer;
    bencher
        .counter(flops(layer.flops))
        .counter(bytes(&[x_ri, w_eoi, y_ro]))
        .bench_local(|| grouped_matmul::forward(x_ri, w_eoi, offsets_e).unwrap());
}

fn backward_input(bencher: Bencher, layer: &Layer) {
    let Layer { x_ri, w_eoi, y_ro, offsets_e, .. } = layer;
    bencher
        .counter(flops(layer.flops))
        .counter(bytes(&[x_ri, w_eoi, y_ro]))
        .bench_local(|| grouped_matmul::backward_input(y_ro, w_eoi, offsets_e).unwrap());
}

fn backward_weight(bencher: Bencher, layer: &Layer) {
    let Layer { x_ri, w_eoi, y_ro, offsets_e, .. } = layer;
    let mut dw_eoi = normals(w_eoi.shape(), 4, DType::F32);
    bencher
        .counter(flops(layer.flops))
        .counter(bytes(&[x_ri, y_ro, &dw_eoi, &dw_eoi]))
        .bench_local(|| grouped_matmul::backward_weight(y_ro, x_ri, offsets_e, &mut dw_eoi).unwrap());
}
