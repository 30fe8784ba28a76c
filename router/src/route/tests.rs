//! Routing against the f64 oracle, and its edges.

use super::*;
use crate::LoadAccumulator;
use crate::reference;
use crate::stats::RoutingStats;
use crate::testing::{assert_close, bits, in_pools, numeric_gradient, tensor, values};

fn config(num_experts: usize, top_k: usize) -> RouterConfig {
    RouterConfig { num_experts, top_k, ..RouterConfig::default() }
}

fn logits(values: &[f64], num_experts: usize) -> Tensor {
    tensor(values, &[values.len() / num_experts, num_experts], DType::F32)
}

/// `dweights_tk` in the order of the plan's rows, as the experts give them.
fn by_rows(dweights_tk: &[f64], routing: &Routing) -> Tensor {
    let mut dweights = vec![0.0; routing.plan.num_rows()];
    for (dweight, &row) in dweights_tk.iter().zip(ints(&routing.plan.token_to_rows_tk)) {
        if row >= 0 {
            dweights[row as usize] = *dweight;
        }
    }
    tensor(&dweights, &[dweights.len()], DType::F32)
}

fn counts(values: &[i32]) -> Tensor {
    Tensor::from_slice(values, &[values.len()]).unwrap()
}

fn balance_loss(routing: &Routing) -> f32 {
    routing.losses.read().unwrap().balance
}

fn z_loss(routing: &Routing) -> f32 {
    routing.losses.read().unwrap().z
}

fn floats(tensor: &Tensor) -> &[f32] {
    tensor.data().unwrap()
}

fn ints(tensor: &Tensor) -> &[i32] {
    tensor.data().unwrap()
}

#[track_caller]
fn assert_near(got: f32, want: f64, rel: f64) {
    assert!((f64::from(got) - want).abs() <= rel * want.abs(), "got {got}, want {want}");
}

/// Every kind of scoring, weighting and balance, with coefficients large enough to matter.
fn all_kinds() -> Vec<RouterConfig> {
    let mut kinds = Vec::new();
    for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
        for renormalise in [false, true] {
            for balance_loss in
                [BalanceLoss::None, BalanceLoss::MicroBatch, BalanceLoss::Sequence, BalanceLoss::GlobalBatch]
            {
                kinds.push(RouterConfig {
                    scoring,
                    renormalise,
                    balance_loss,
                    routed_scaling_factor: 2.5,
                    balance_loss_coefficient: 0.75,
                    z_loss_coefficient: 0.125,
                    ..config(5, 2)
                });
            }
        }
    }
    kinds
}

#[test]
fn weights_losses_and_gradients_follow_the_reference_for_every_kind() {
    let (x, dweights) = (values(8 * 5, 1), values(8 * 2, 2));
    let earlier = [7.0, 0.0, 1.0, 20.0, 3.0];
    let (logits_te, earlier_load_e) = (logits(&x, 5), counts(&[7, 0, 1, 20, 3]));
    for config in all_kinds() {
        let routing = route(&logits_te, None, &config, 4, Some(&earlier_load_e)).unwrap();
        let indices = ints(&routing.routed.indices_tk);
        let (weights, balance, z) = reference::route(&x, indices, &config, 4, &earlier);
        assert_close(&routing.routed.weights_tk, &weights, 1e-6);
        assert_near(balance_loss(&routing), balance, 1e-6);
        assert_near(z_loss(&routing), z, 1e-6);

        let objective = |x: &[f64]| {
            let (weights, balance, z) = reference::route(x, indices, &config, 4, &earlier);
            weights.iter().zip(&dweights).map(|(w, dw)| w * dw).sum::<f64>() + 0.5 * (balance + z)
        };
        let dlogits_te = route_backward(&routing, &logits_te, &by_rows(&dweights, &routing), 0.5).unwrap();
        assert_close(&dlogits_te, &numeric_gradient(objective, &x), 1e-5);
    }
}

#[test]
fn the_losses_alone_reach_the_logits_when_the_weights_have_no_gradient() {
    let x = values(8 * 5, 3);
    let no_gradient = tensor(&[0.0; 16], &[16], DType::F32);
    for config in all_kinds() {
        let routing = route(&logits(&x, 5), None, &config, 2, None).unwrap();
        let objective = |x: &[f64]| {
            let (_, balance, z) =
                reference::route(x, ints(&routing.routed.indices_tk), &config, 2, &[0.0; 5]);
            balance + z
        };
        let dlogits_te = route_backward(&routing, &logits(&x, 5), &no_gradient, 1.0).unwrap();
        assert_close(&dlogits_te, &numeric_gradient(objective, &x), 1e-5);
    }
}

#[test]
fn the_balance_loss_is_its_coefficient_when_the_load_is_even() {
    // Token t prefers expert t mod 4, all alike: load and mean probabilities are even.
    let x: Vec<f64> = (0..32).map(|i| if i % 4 == (i / 4) % 4 { 2.0 } else { 0.0 }).collect();
    for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
        for balance_loss in [BalanceLoss::MicroBatch, BalanceLoss::Sequence, BalanceLoss::GlobalBatch] {
            let config =
                RouterConfig { scoring, balance_loss, balance_loss_coefficient: 0.25, ..config(4, 1) };
            let routing = route(&logits(&x, 4), None, &config, 2, None).unwrap();
            assert_near(routing.losses.read().unwrap().balance, 0.25, 1e-6);
        }
    }
}

#[test]
fn the_global_loss_of_one_micro_batch_is_the_micro_batch_loss() {
    let logits_te = logits(&values(12 * 6, 4), 6);
    let micro = RouterConfig { balance_loss: BalanceLoss::MicroBatch, ..config(6, 2) };
    let loss = |config| balance_loss(&route(&logits_te, None, &config, 1, None).unwrap());
    assert_eq!(loss(config(6, 2)), loss(micro));
}

/// World-size invariance: two ranks with half the tokens each and their summed load against one with all of them.
#[test]
fn ranks_that_share_their_load_have_the_loss_and_gradient_of_one_rank() {
    let config = RouterConfig { balance_loss_coefficient: 1.0, ..config(6, 2) };
    let x = values(16 * 6, 5);
    let whole_logits = logits(&x, 6);
    let whole = route(&whole_logits, None, &config, 1, None).unwrap();
    let dweights = values(32, 6);
    let want = route_backward(&whole, &whole_logits, &by_rows(&dweights, &whole), 1.0).unwrap();

    let mut load = LoadAccumulator::new(6, Device::Cpu).unwrap();
    let halves = [logits(&x[..48], 6), logits(&x[48..], 6)];
    let mut routings = halves.each_ref().map(|half| route(half, None, &config, 1, None).unwrap());
    for routing in &routings {
        load.add(routing).unwrap();
    }
    let (mut loss, mut gradient) = (0.0, Vec::new());
    for (rank, (routing, half)) in routings.iter_mut().zip(&halves).enumerate() {
        routing.set_global_load(&load.load_e().unwrap()).unwrap();
        loss += f64::from(balance_loss(routing)) / 2.0;
        let dweights = by_rows(&dweights[rank * 16..][..16], routing);
        // Half the losses' scale, because the mean over tokens is now over half as many.
        let dlogits = route_backward(routing, half, &dweights, 0.5).unwrap();
        gradient.extend(dlogits.to_f32_vec().unwrap().iter().copied().map(f64::from));
    }
    assert_near(balance_loss(&whole), loss, 1e-6);
    assert_close(&want, &gradient, 1e-6);
}

#[test]
fn the_bias_changes_the_selection_and_not_the_weights() {
    let logits_te = logits(&[2.0, 1.0, 0.0, -1.0], 4);
    let config = RouterConfig { scoring: Scoring::Sigmoid, renormalise: false, ..config(4, 2) };
    let bias_e = Tensor::from_slice(&[-1.0f32, 0.0, 0.0, 1.0], &[4]).unwrap();
    let plain = route(&logits_te, None, &config, 1, None).unwrap();
    let biased = route(&logits_te, Some(&bias_e), &config, 1, None).unwrap();
    assert_eq!(ints(&plain.routed.indices_tk), [0, 1]);
    assert_eq!(ints(&biased.routed.indices_tk), [3, 1]);
    assert_eq!(bits(&plain.routed.scores_te), bits(&biased.routed.scores_te));
    let scores = floats(&biased.routed.scores_te);
    assert_eq!(floats(&biased.routed.weights_tk), [scores[3], scores[1]]);
}

#[test]
fn renormalised_top_1_has_weight_one_and_passes_no_gradient() {
    let logits_te = logits(&values(6 * 4, 7), 4);
    let config = RouterConfig { balance_loss: BalanceLoss::None, z_loss_coefficient: 0.0, ..config(4, 1) };
    let routing = route(&logits_te, None, &config, 1, None).unwrap();
    assert_eq!(floats(&routing.routed.weights_tk), [1.0; 6]);
    let dweights_r = by_rows(&values(6, 8), &routing);
    let dlogits_te = route_backward(&routing, &logits_te, &dweights_r, 1.0).unwrap();
    assert!(floats(&dlogits_te).iter().all(|g| g.abs() < 1e-6));
}

#[test]
fn one_expert_and_all_experts_work() {
    for (e, k) in [(1, 1), (4, 4)] {
        let logits_te = logits(&values(3 * e, 9), e);
        let routing = route(&logits_te, None, &config(e, k), 1, None).unwrap();
        assert_near(balance_loss(&routing), 0.01, 1e-6);
        assert!(
            floats(&routing.routed.weights_tk).chunks(k).all(|w| (w.iter().sum::<f32>() - 1.0).abs() < 1e-6)
        );
        assert_eq!(ints(&routing.plan.tokens_per_expert_e), vec![3; e]);
        let dlogits_te = route_backward(&routing, &logits_te, &routing.plan.weights_r, 1.0).unwrap();
        assert!(floats(&dlogits_te).iter().all(|g| g.is_finite()));
    }
}

#[test]
fn all_tokens_to_one_expert_cost_the_most_and_drop_beyond_capacity() {
    let logits_te = logits(&[20.0, 0.0, 0.0, 0.0].repeat(8), 4);
    let config = RouterConfig { capacity_factor: Some(1.5), ..config(4, 1) };
    let routing = route(&logits_te, None, &config, 1, None).unwrap();
    assert_near(balance_loss(&routing), 0.04, 1e-6);
    // Capacity ⌈1.5·8·1 / 4⌉ = 3: the first three tokens stay.
    assert_eq!(ints(&routing.plan.token_to_rows_tk), [0, 1, 2, -1, -1, -1, -1, -1]);
    let mut load = LoadAccumulator::new(4, Device::Cpu).unwrap();
    load.add(&routing).unwrap();
    let load = load.read().unwrap();
    assert_eq!((load.tokens_per_expert[0], load.computed_per_expert[0]), (8, 3));
    let stats = RoutingStats::new(&load);
    assert_eq!((stats.dropped_tokens, stats.dead_experts, stats.max_load_ratio), (5, 3, 4.0));
}

#[test]
fn no_tokens_have_no_losses_and_no_gradient() {
    for config in all_kinds() {
        let logits_te = Tensor::zeros(&[0, 5], DType::F32, Device::Cpu).unwrap();
        let routing = route(&logits_te, None, &config, 1, None).unwrap();
        assert_eq!(routing.losses.read().unwrap(), RouterLosses { balance: 0.0, z: 0.0 });
        let dlogits_te = route_backward(&routing, &logits_te, &routing.plan.weights_r, 1.0).unwrap();
        assert_eq!(dlogits_te.shape(), [0, 5]);
    }
}

#[test]
fn nan_logits_come_out_as_nan_and_leave_other_tokens_alone() {
    let mut x = values(4 * 5, 10);
    x[7] = f64::NAN;
    for config in all_kinds() {
        let logits_te = logits(&x, 5);
        let routing = route(&logits_te, None, &config, 2, None).unwrap();
        let weights = floats(&routing.routed.weights_tk);
        assert!(weights[..2].iter().chain(&weights[4..]).all(|w| w.is_finite()));
        assert!(z_loss(&routing).is_nan());
        assert!(balance_loss(&routing).is_nan() || config.balance_loss == BalanceLoss::None);
        route_backward(&routing, &logits_te, &routing.plan.weights_r, 1.0).unwrap();
    }
}

#[test]
fn sigmoid_scores_that_all_underflow_give_finite_weights() {
    let config = RouterConfig { scoring: Scoring::Sigmoid, ..config(3, 2) };
    let logits_te = logits(&[-1e4; 6], 3);
    let routing = route(&logits_te, None, &config, 1, None).unwrap();
    assert_eq!(floats(&routing.routed.weights_tk), [0.0; 4]);
    let dlogits_te = route_backward(&routing, &logits_te, &routing.plan.weights_r, 1.0).unwrap();
    assert!(floats(&dlogits_te).iter().all(|g| g.is_finite()));
}

#[test]
fn the_load_sums_over_micro_batches_and_starts_anew() {
    let mut load = LoadAccumulator::new(5, Device::Cpu).unwrap();
    for seed in 0..3 {
        let (logits_te, earlier_load_e) = (logits(&values(8 * 5, seed), 5), load.load_e().unwrap());
        load.add(&route(&logits_te, None, &config(5, 2), 1, Some(&earlier_load_e)).unwrap()).unwrap();
    }
    let step = load.take().unwrap().read().unwrap();
    assert_eq!((step.tokens_per_expert.iter().sum::<u64>(), step.num_tokens), (48, 24));
    assert_eq!(step.computed_per_expert, step.tokens_per_expert);
    let entropy = RoutingStats::new(&step).routing_entropy_nats;
    assert!(entropy > 0.5 && entropy < 5f64.ln(), "{entropy}");
    let next = load.read().unwrap();
    assert_eq!((next.tokens_per_expert, next.num_tokens, next.entropy_nats), (vec![0; 5], 0, 0.0));
}

#[test]
fn a_finished_step_moves_the_bias_against_its_load() {
    let mut load = LoadAccumulator::new(4, Device::Cpu).unwrap();
    let logits_te = logits(&[20.0, 0.0, 0.0, 0.0].repeat(8), 4);
    load.add(&route(&logits_te, None, &config(4, 1), 1, None).unwrap()).unwrap();
    let mut bias_e = Tensor::zeros(&[4], DType::F32, Device::Cpu).unwrap();
    load.move_bias(&mut bias_e, 0.5).unwrap();
    assert_eq!(floats(&bias_e), [-0.5, 0.5, 0.5, 0.5]);
}

#[test]
fn thread_count_does_not_change_a_bit() {
    let logits_te = logits(&values(2000 * 16, 11), 16);
    let dweights_tk = values(2000 * 3, 12);
    in_pools(|| {
        let routing = route(&logits_te, None, &config(16, 3), 1, None).unwrap();
        let dlogits_te = route_backward(&routing, &logits_te, &by_rows(&dweights_tk, &routing), 1.0).unwrap();
        let rows = ints(&routing.plan.token_to_rows_tk).to_vec();
        (
            bits(&routing.routed.weights_tk),
            bits(&dlogits_te),
            rows,
            balance_loss(&routing).to_bits(),
            z_loss(&routing).to_bits(),
        )
    });
}

#[test]
fn what_does_not_fit_is_one_clear_error() {
    let logits_te = logits(&values(6 * 4, 13), 4);
    let run = |config: RouterConfig, sequences, load: Option<&Tensor>| {
        route(&logits_te, None, &config, sequences, load).map(drop).unwrap_err().to_string()
    };
    assert_eq!(
        run(config(3, 4), 1, None),
        "the routing configuration does not work:\n  \
         top_k: is 4, expected at most the 3 of num_experts; lower top_k or add experts"
    );
    assert_eq!(run(config(5, 2), 1, None), "route: logits has shape [6, 4], expected [6, 5]");
    let sequence = RouterConfig { balance_loss: BalanceLoss::Sequence, ..config(4, 2) };
    assert_eq!(
        run(sequence, 4, None),
        "num_sequences is 4, expected a divisor of the 6 tokens: \
         the balance loss per sequence needs equal lengths"
    );
    assert_eq!(
        run(config(4, 2), 1, Some(&counts(&[1; 3]))),
        "routing_shares: earlier_load has shape [3], expected [4]"
    );
    let bias_e = Tensor::from_slice(&[0.0f32; 3], &[3]).unwrap();
    let error = route(&logits_te, Some(&bias_e), &config(4, 2), 1, None).unwrap_err().to_string();
    assert_eq!(error, "router: bias has shape [3], expected [4]");

    let mut routing = route(&logits_te, None, &config(4, 2), 1, None).unwrap();
    assert!(routing.set_global_load(&counts(&[1; 3])).is_err());
    assert!(route_backward(&routing, &logits_te, &logits_te, 1.0).is_err());
    assert!(LoadAccumulator::new(3, Device::Cpu).unwrap().add(&routing).is_err());
}
