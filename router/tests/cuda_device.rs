//! A routed layer on a GPU, forward and backward, against the same layer on the host.
//!
//! Without a GPU the tests say so and stop, unless `WATTLE_REQUIRE_CUDA=1` makes that a failure.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

#[path = "../../kernels/tests/cuda_device/gpu.rs"]
mod gpu;

use gpu::gpu_is_here;
use wattle_kernels::ops::elementwise;
use wattle_kernels::rng::{Philox, Purpose};
use wattle_kernels::{DType, Device, Tensor};
use wattle_router::experts::{self, ExpertTimes};
use wattle_router::{
    BalanceLoss, Load, LoadAccumulator, RouterConfig, RouterLosses, Scoring, route, route_backward,
};

const T: usize = 96;
const D: usize = 64;
const F: usize = 32;

fn normal(shape: &[usize], dtype: DType, seed: u64, device: Device) -> Tensor {
    let rng = Philox::new(seed, Purpose::Synthetic, 0);
    let num_values = shape.iter().product::<usize>() as u64;
    let values: Vec<f32> = (0..num_values).map(|i| rng.normal(i) as f32).collect();
    let tensor = elementwise::cast(&Tensor::from_slice(&values, shape).unwrap(), dtype).unwrap();
    tensor.to_device(device).unwrap()
}

/// What two micro-batches of one optimizer step come to.
struct Step {
    /// Integers of the plans.
    plans: Vec<Vec<i32>>,
    losses: Vec<RouterLosses>,
    load: Load,
    /// Outputs and gradients.
    tensors: Vec<Tensor>,
}

/// All is asked for before anything is read, as in training.
fn step(config: &RouterConfig, dtype: DType, device: Device) -> Step {
    let e = config.num_experts;
    let (gate_up, down) = (normal(&[e, 2 * F, D], dtype, 1, device), normal(&[e, D, F], dtype, 2, device));
    let mut dgate_up = Tensor::zeros(gate_up.shape(), DType::F32, device).unwrap();
    let mut ddown = Tensor::zeros(down.shape(), DType::F32, device).unwrap();
    let mut bias = normal(&[e], DType::F32, 3, device);
    elementwise::scale_assign(&mut bias, 0.1).unwrap();
    let mut load = LoadAccumulator::new(e, device).unwrap();
    let (mut routings, mut tensors) = (Vec::new(), Vec::new());
    for seed in [10, 20] {
        let (x, dy) = (normal(&[T, D], dtype, seed, device), normal(&[T, D], dtype, seed + 1, device));
        let logits = normal(&[T, e], DType::F32, seed + 2, device);
        let earlier = load.load_e().unwrap();
        let routing = route(&logits, Some(&bias), config, 4, Some(&earlier)).unwrap();
        drop(earlier);
        load.add(&routing).unwrap();
        let mut times = ExpertTimes::default();
        let (y, saved) = experts::forward(&x, &gate_up, &down, &routing.plan, &mut times).unwrap();
        let (dx, dweights) =
            experts::backward(&dy, saved, &gate_up, &down, &mut dgate_up, &mut ddown, &mut times).unwrap();
        let dlogits = route_backward(&routing, &logits, &dweights, 0.5).unwrap();
        tensors.extend([y, dx, dweights, dlogits]);
        routings.push(routing);
    }
    load.move_bias(&mut bias, 1e-3).unwrap();
    let load = load.take().unwrap();
    tensors.extend([dgate_up, ddown, bias]);
    let integers = |tensor: &Tensor| tensor.to_device(Device::Cpu).unwrap().data::<i32>().unwrap().to_vec();
    let plans = routings.iter().flat_map(|routing| {
        let plan = &routing.plan;
        let maps = [&plan.offsets_e, &plan.row_to_token_r, &plan.token_to_rows_tk, &plan.tokens_per_expert_e];
        maps.map(integers)
    });
    Step {
        plans: plans.collect(),
        losses: routings.iter().map(|routing| routing.losses.read().unwrap()).collect(),
        load: load.read().unwrap(),
        tensors,
    }
}

/// Within `rel`, relative to the larger of each value and the root mean square of all.
#[track_caller]
fn assert_close(got: &Tensor, want: &Tensor, rel: f32) {
    assert_eq!((got.shape(), got.dtype(), got.device()), (want.shape(), want.dtype(), Device::Cuda(0)));
    let (got, want) = (got.to_f32_vec().unwrap(), want.to_f32_vec().unwrap());
    let rms = (want.iter().map(|x| x * x).sum::<f32>() / want.len() as f32).sqrt();
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let bound = rel * want.abs().max(rms);
        assert!((got - want).abs() <= bound, "value {i}: got {got}, want {want}");
    }
}

#[test]
fn a_routed_layer_is_that_of_the_host_forward_and_backward() {
    if !gpu_is_here() {
        return;
    }
    let losses =
        [BalanceLoss::None, BalanceLoss::MicroBatch, BalanceLoss::Sequence, BalanceLoss::GlobalBatch];
    let kinds = losses.into_iter().flat_map(|balance_loss| {
        let both = [Scoring::Softmax, Scoring::Sigmoid];
        both.map(|scoring| RouterConfig {
            num_experts: 16,
            top_k: 4,
            scoring,
            balance_loss,
            balance_loss_coefficient: 0.75,
            z_loss_coefficient: 0.125,
            ..RouterConfig::default()
        })
    });
    for config in kinds {
        for capacity_factor in [None, Some(0.75), Some(1.0)] {
            for (dtype, rel) in [(DType::F32, 2e-4), (DType::Bf16, 3e-2)] {
                let config = RouterConfig { capacity_factor, ..config };
                let (want, got) = (step(&config, dtype, Device::Cpu), step(&config, dtype, Device::Cuda(0)));
                assert_eq!(got.plans, want.plans);
                for (got, want) in got.losses.iter().zip(&want.losses) {
                    assert!((got.balance - want.balance).abs() <= 1e-5 * want.balance);
                    assert!((got.z - want.z).abs() <= 1e-5 * want.z);
                }
                assert!((got.load.entropy_nats - want.load.entropy_nats).abs() <= 1e-2);
                let entropy_nats = want.load.entropy_nats;
                assert_eq!(Load { entropy_nats, ..got.load }, want.load);
                for (got, want) in got.tensors.iter().zip(&want.tensors) {
                    assert_close(got, want, rel);
                }
            }
        }
    }
}
