//! The whole model's gradient against central differences of an f64 decoder.

use wattle_engine::autograd::{Phase, PhaseClock, Tape};
use wattle_engine::model::config::{ModelConfig, MoeConfig, QkNorm};
use wattle_engine::model::{Decoder, ParameterStore, Pass};
use wattle_kernels::rng::{Philox, Purpose};
use wattle_kernels::{DType, Tensor};
use wattle_router::{BalanceLoss, Scoring};
use wattle_tests::reference_decoder::{ReferenceDecoder, Weights};

const VOCAB: usize = 13;
const BATCH: usize = 2;
const SEQUENCE: usize = 7;
/// Entries looked at in each parameter.
const NUM_PROBES: usize = 12;
/// f32 sums against f64 ones: the relative error that the model's gradients must stay within.
const TOLERANCE: f64 = 1e-3;

fn model() -> ModelConfig {
    ModelConfig {
        d_model: 16,
        num_layers: 3,
        num_heads: 4,
        num_kv_heads: Some(2),
        ffn_size: Some(20),
        // Larger than in training, so that every path carries a gradient worth comparing.
        init_std: 0.3,
        ..ModelConfig::default()
    }
}

fn moe() -> MoeConfig {
    MoeConfig {
        num_experts: 6,
        top_k: 2,
        expert_ffn_size: 10,
        balance_loss_coefficient: 0.05,
        z_loss_coefficient: 0.01,
        ..MoeConfig::default()
    }
}

fn check(model: ModelConfig, moe: Option<MoeConfig>) {
    let mut store = ParameterStore::default();
    let decoder =
        Decoder::new(&mut store, &model, moe.as_ref(), VOCAB, SEQUENCE, DType::F32, Some(3)).unwrap();
    let rng = Philox::new(5, Purpose::Synthetic, 0);
    let mut tokens = (0..).map(|i| rng.below(i, VOCAB as u64) as i32);
    let ids: Vec<i32> = tokens.by_ref().take(BATCH * SEQUENCE).collect();
    let mut targets: Vec<i32> = tokens.take(BATCH * SEQUENCE).collect();
    targets[3] = -1;

    let mut routing = decoder.new_routing().unwrap();
    let mut tape = Tape::recording(&mut store, PhaseClock::start(Phase::Head));
    let pass = Pass { auxiliary_scale: 1.0, cache: None };
    let ids_bt = Tensor::from_slice(&ids, &[BATCH, SEQUENCE]).unwrap();
    let targets_bt = Tensor::from_slice(&targets, &[BATCH, SEQUENCE]).unwrap();
    let hidden = decoder.forward(&mut tape, &ids_bt, &mut routing, pass).unwrap();
    decoder.loss(&mut tape, &hidden, &targets_bt, 1.0 / (BATCH * SEQUENCE) as f32).unwrap();
    let loss = tape.losses().unwrap().total();
    tape.backward().unwrap();

    let reference = ReferenceDecoder { model, moe, batch: BATCH, sequence: SEQUENCE };
    let mut weights: Weights = store
        .iter()
        .map(|p| {
            let values = p.master.to_f32_vec().unwrap();
            (p.name.clone(), values.into_iter().map(f64::from).collect())
        })
        .collect();
    let expected = reference.loss(&weights, &ids, &targets);
    assert!((loss - expected).abs() < 1e-4 * expected, "loss {loss}, expected {expected}");

    for parameter in store.iter() {
        let gradient = parameter.gradient.as_ref().unwrap().to_f32_vec().unwrap();
        let stride = (gradient.len() / NUM_PROBES).max(1);
        let (mut error, mut norm) = (0.0f64, 0.0f64);
        for index in (0..gradient.len()).step_by(stride) {
            let mut loss_at = |offset: f64| {
                weights.get_mut(&parameter.name).unwrap()[index] += offset;
                let loss = reference.loss(&weights, &ids, &targets);
                weights.get_mut(&parameter.name).unwrap()[index] -= offset;
                loss
            };
            const STEP: f64 = 1e-5;
            let numeric = (loss_at(STEP) - loss_at(-STEP)) / (2.0 * STEP);
            error += (f64::from(gradient[index]) - numeric).powi(2);
            norm += numeric.powi(2);
        }
        let relative = error.sqrt() / norm.sqrt().max(1e-6);
        assert!(relative < TOLERANCE, "{}: relative error {relative:.2e}", parameter.name);
    }
}

#[test]
fn a_sparse_model_with_softmax_routing_has_the_right_gradient() {
    check(model(), Some(moe()));
}

#[test]
fn a_sparse_model_with_sigmoid_routing_and_a_shared_expert_has_the_right_gradient() {
    let moe = MoeConfig {
        scoring: Scoring::Sigmoid,
        num_shared_experts: 1,
        num_leading_dense_layers: 1,
        routed_scaling_factor: 2.5,
        balance_loss: BalanceLoss::Sequence,
        ..moe()
    };
    check(model(), Some(moe));
}

#[test]
fn weights_that_are_not_renormalised_have_the_right_gradient() {
    check(model(), Some(MoeConfig { renormalise: false, ..moe() }));
}

#[test]
fn a_dense_model_with_qk_norm_windows_and_its_own_head_has_the_right_gradient() {
    let model = ModelConfig {
        qk_norm: QkNorm::PerHead,
        tied_embedding: false,
        attention_windows: vec![3, 0],
        num_global_tokens: 1,
        ..model()
    };
    check(model, None);
}

#[test]
fn a_model_with_biases_norms_over_all_heads_and_half_a_rotation_has_the_right_gradient() {
    let model = ModelConfig {
        qk_norm: QkNorm::AllHeads,
        attention_bias: true,
        head_dim: Some(8),
        rotary_fraction: 0.5,
        ..model()
    };
    check(model, Some(moe()));
}
