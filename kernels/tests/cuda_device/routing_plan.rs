//! The routing plan and the load of the experts: the same bits as on the host.

use wattle_kernels::ops::routing_load::{self, Tally};
use wattle_kernels::ops::routing_plan::{self, RoutingPlan};
use wattle_kernels::rng::{Philox, Purpose};
use wattle_kernels::{DType, Device, Tensor};

use crate::{gpu_is_here, normal, on_gpu};

/// Tokens, choices, experts: none, less than a tile, several tiles, a single expert, the most.
const SHAPES: [[usize; 3]; 5] = [[0, 2, 4], [48, 2, 5], [1250, 4, 17], [3000, 1, 1], [1025, 4, 1024]];

fn choices([t, k, e]: [usize; 3]) -> Tensor {
    let rng = Philox::new(1, Purpose::Synthetic, 1);
    let experts: Vec<i32> = (0..(t * k) as u64).map(|i| rng.below(i, e as u64) as i32).collect();
    Tensor::from_slice(&experts, &[t, k]).unwrap()
}

/// The elements' bits, of i32 and f32 alike.
fn bits(tensor: &Tensor) -> Vec<u32> {
    let here = tensor.to_device(Device::Cpu).unwrap();
    match here.dtype() {
        DType::I32 => here.data::<i32>().unwrap().iter().map(|&x| x as u32).collect(),
        _ => here.data::<f32>().unwrap().iter().map(|x| x.to_bits()).collect(),
    }
}

fn all_bits(plan: &RoutingPlan) -> [Vec<u32>; 5] {
    [
        &plan.offsets_e,
        &plan.row_to_token_r,
        &plan.token_to_rows_tk,
        &plan.weights_r,
        &plan.tokens_per_expert_e,
    ]
    .map(bits)
}

#[test]
fn plans_have_the_bits_of_the_host_with_and_without_a_capacity() {
    if !gpu_is_here() {
        return;
    }
    for shape @ [t, k, e] in SHAPES {
        let (indices, weights) = (choices(shape), normal(&[t, k], DType::F32, 2));
        for capacity in [None, Some(0), Some(1), Some((t * k).div_ceil(e))] {
            let want = routing_plan::plan(&indices, &weights, e, capacity).unwrap();
            let got = routing_plan::plan(&on_gpu(&indices), &on_gpu(&weights), e, capacity).unwrap();
            assert_eq!(got.num_rows(), want.num_rows());
            assert_eq!(all_bits(&got), all_bits(&want), "{shape:?}, capacity {capacity:?}");
        }
    }
}

#[test]
fn loads_shares_and_the_moved_bias_have_the_bits_of_the_host() {
    if !gpu_is_here() {
        return;
    }
    for shape @ [t, k, e] in SHAPES {
        let (indices, weights) = (choices(shape), normal(&[t, k], DType::F32, 2));
        let entropy = normal(&[t], DType::F32, 3);
        let run = |device: Device| {
            let [indices, weights, entropy] =
                [&indices, &weights, &entropy].map(|tensor| tensor.to_device(device).unwrap());
            let plan = routing_plan::plan(&indices, &weights, e, Some(t.div_ceil(e))).unwrap();
            let mut tally = Tally::new(e, device).unwrap();
            tally.add(&plan, &entropy).unwrap();
            tally.add(&plan, &entropy).unwrap();
            let mut bias = Tensor::zeros(&[e], DType::F32, device).unwrap();
            routing_load::update_bias(&mut bias, &tally.load_e().unwrap(), 1e-3).unwrap();
            let groups = if t % 2 == 0 { 2 } else { 5 };
            let load = routing_load::by_group(&indices, groups, e).unwrap();
            let shares = routing_load::shares(&load, Some(&tally.load_e().unwrap())).unwrap();
            (tally.read().unwrap(), [bias, load, shares].each_ref().map(bits))
        };
        let ((want, want_bits), (got, got_bits)) = (run(Device::Cpu), run(Device::Cuda(0)));
        assert_eq!(got_bits, want_bits, "{shape:?}");
        assert_eq!(got.tokens_per_expert, want.tokens_per_expert);
        assert_eq!(got.computed_per_expert, want.computed_per_expert);
        // The same terms in another order.
        assert!((got.entropy_nats - want.entropy_nats).abs() <= 1e-9, "{shape:?}");
    }
}
