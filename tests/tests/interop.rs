//! The six families of Hugging Face transformers: the same numbers there and here.
//!
//! tests/data/interop holds a tiny random model of each, with what transformers computed from it; they were made by
//! tests/interop/make_models.py with the versions that stand in each expected.json.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use wattle_engine::autograd::{Phase, PhaseClock, Tape};
use wattle_engine::checkpoint::safetensors;
use wattle_engine::interop::LoadedModel;
use wattle_engine::model::Pass;
use wattle_engine::optim;
use wattle_engine::optim::config::OptimizerConfig;
use wattle_kernels::Tensor;
use wattle_kernels::ops::adamw::State;
use wattle_router::BalanceLoss;

const FAMILIES: [&str; 6] = ["llama", "qwen3", "mixtral", "olmoe", "qwen3_moe", "glm4_moe"];

/// The kept models, or others that the same script has just made.
fn directory(family: &str) -> PathBuf {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/interop");
    std::env::var_os("WATTLE_INTEROP_MODELS").map_or(kept, PathBuf::from).join(family)
}

/// What transformers computed.
struct Expected {
    tensors: BTreeMap<String, Tensor>,
    json: Value,
}

impl Expected {
    fn of(family: &str) -> Self {
        let tensors = safetensors::read(&directory(family).join("expected.safetensors")).unwrap();
        let tensors = tensors.into_iter().map(|named| (named.name, named.tensor)).collect();
        let json = std::fs::read_to_string(directory(family).join("expected.json")).unwrap();
        Expected { tensors, json: serde_json::from_str(&json).unwrap() }
    }

    fn ids(&self, name: &str) -> Vec<i32> {
        self.tensors[name].data::<i32>().unwrap().to_vec()
    }

    fn setting(&self, name: &str) -> f64 {
        self.json["settings"][name].as_f64().unwrap()
    }

    /// A training batch: the step's windows of `train_ids`, as ids and as the ids that follow.
    fn batch(&self, step: usize) -> (Tensor, Tensor) {
        let [sequences, length] = ["sequences", "length"].map(|name| self.setting(name) as usize);
        let ids = self.ids("train_ids");
        let window = |shift: usize| -> Vec<i32> {
            let starts = (0..sequences).map(|sequence| 17 * step + 31 * sequence + shift);
            starts.flat_map(|start| ids[start..start + length].to_vec()).collect()
        };
        let tensor = |ids: Vec<i32>| Tensor::from_slice(&ids, &[sequences, length]).unwrap();
        (tensor(window(0)), tensor(window(1)))
    }
}

fn logits(model: &mut LoadedModel, ids: &[i32]) -> Vec<f32> {
    let ids = Tensor::from_slice(ids, &[1, ids.len()]).unwrap();
    let mut tape = Tape::forward_only(&mut model.store);
    let hidden = model.decoder.forward(&mut tape, &ids, &mut model.routing, Pass::default()).unwrap();
    drop(tape);
    model.decoder.logits(&model.store, &hidden.value).unwrap().to_f32_vec().unwrap()
}

#[test]
fn logits_of_every_family_agree_to_1e_4_on_prompts_of_1_17_and_256_tokens() {
    for family in FAMILIES {
        let expected = Expected::of(family);
        let mut model = LoadedModel::open(&directory(family)).unwrap();
        let (ids, wanted) = (expected.ids("ids"), expected.tensors["logits"].to_f32_vec().unwrap());
        for length in [1, 17, 256] {
            let got = logits(&mut model, &ids[..length]);
            // The model is causal: a prompt's logits are those of its start.
            let pairs = got.iter().zip(&wanted);
            let worst = pairs.map(|(got, wanted)| (got - wanted).abs()).fold(0.0, f32::max);
            assert_eq!(got.len(), wanted.len() / 256 * length);
            assert!(worst < 1e-4, "{family}, {length} tokens: {worst:e}");
        }
    }
}

/// The names of one of our parameters in a model of transformers in memory, in the order of its rows.
fn their_names(ours: &str) -> Vec<String> {
    let base = ours
        .replace("model.embedding", "model.embed_tokens.weight")
        .replace("model.final_norm", "model.norm.weight")
        .replace("model.head", "lm_head.weight")
        .replace(".attention_norm", ".input_layernorm.weight")
        .replace(".feed_forward_norm", ".post_attention_layernorm.weight")
        .replace(".attention.", ".self_attn.")
        .replace(".feed_forward.", ".mlp.")
        .replace(".moe.shared.", ".mlp.shared_experts.")
        .replace(".moe.router", ".mlp.gate.weight")
        .replace(".moe.gate_up", ".mlp.experts.gate_up_proj")
        .replace(".moe.down", ".mlp.experts.down_proj");
    if let Some(stem) = base.strip_suffix(".gate_up") {
        return vec![format!("{stem}.gate_proj.weight"), format!("{stem}.up_proj.weight")];
    }
    let mut name = base;
    if let Some(stem) = name.strip_suffix(".down") {
        name = format!("{stem}.down_proj.weight");
    }
    for (ours, theirs) in [
        (".query_norm", ".q_norm.weight"),
        (".key_norm", ".k_norm.weight"),
        (".query_bias", ".q_proj.bias"),
        (".key_bias", ".k_proj.bias"),
        (".value_bias", ".v_proj.bias"),
        (".query", ".q_proj.weight"),
        (".key", ".k_proj.weight"),
        (".value", ".v_proj.weight"),
        (".output", ".o_proj.weight"),
    ] {
        if let Some(stem) = name.strip_suffix(ours) {
            return vec![format!("{stem}{theirs}")];
        }
    }
    vec![name]
}

fn assert_gradients_agree(family: &str, expected: &Expected, model: &LoadedModel) {
    let mut compared = 0;
    for parameter in model.store.iter() {
        let got = parameter.gradient.as_ref().unwrap().to_f32_vec().unwrap();
        let names = their_names(&parameter.name);
        compared += names.len();
        let wanted: Vec<f32> = names
            .iter()
            .flat_map(|name| expected.tensors[&format!("gradient.{name}")].to_f32_vec().unwrap())
            .collect();
        assert_eq!(got.len(), wanted.len(), "{family}: {}", parameter.name);
        let norm = |values: &mut dyn Iterator<Item = f32>| {
            values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt()
        };
        let error = norm(&mut got.iter().zip(&wanted).map(|(got, wanted)| got - wanted));
        let size = norm(&mut wanted.iter().copied());
        assert!(size > 0.0 && error < 1e-3 * size, "{family}: {}: {error:e} of {size:e}", parameter.name);
    }
    let theirs = expected.tensors.keys().filter(|name| name.starts_with("gradient.")).count();
    assert_eq!(compared, theirs, "{family}: every gradient is compared");
}

#[test]
fn training_agrees_at_its_first_step_and_at_its_fiftieth() {
    for family in FAMILIES {
        let expected = Expected::of(family);
        let mut model = LoadedModel::open(&directory(family)).unwrap();
        let optimizer = OptimizerConfig {
            learning_rate: expected.setting("learning_rate"),
            beta1: expected.json["settings"]["betas"][0].as_f64().unwrap(),
            beta2: expected.json["settings"]["betas"][1].as_f64().unwrap(),
            epsilon: expected.setting("epsilon"),
            weight_decay: expected.setting("weight_decay"),
            clip_norm: expected.setting("clip_norm"),
            ..OptimizerConfig::default()
        };
        let has_balance = model.config.moe.as_ref().is_some_and(|moe| moe.balance_loss != BalanceLoss::None);
        let mut updates = State::new(0);
        let steps = expected.json["steps"].as_array().unwrap();
        for (step, wanted) in steps.iter().enumerate() {
            let (ids, targets) = expected.batch(step);
            model.store.zero_gradients().unwrap();
            let mut tape = Tape::recording(&mut model.store, PhaseClock::start(Phase::Head));
            let pass = Pass { auxiliary_scale: 1.0, cache: None };
            let hidden = model.decoder.forward(&mut tape, &ids, &mut model.routing, pass).unwrap();
            let scale = (targets.num_elements() as f32).recip();
            model.decoder.loss(&mut tape, &hidden, &targets, scale).unwrap();
            let losses = tape.losses().unwrap();
            tape.backward().unwrap();
            if step == 0 {
                assert_gradients_agree(family, &expected, &model);
            }
            optim::step(&mut model.store, &optimizer, &mut updates, optimizer.learning_rate).unwrap();
            model.routing.iter_mut().for_each(|state| drop(state.take_load().unwrap()));
            let bound = if step == 0 { 1e-4 } else { 1e-3 };
            let agree = |name: &str, got: f64| {
                let wanted = wanted[name].as_f64().unwrap();
                assert!(
                    (got - wanted).abs() <= bound * wanted,
                    "{family}, step {step}: {name} {got}, {wanted}"
                );
            };
            agree("ce_loss", losses.cross_entropy);
            if has_balance {
                agree("balance_loss", losses.balance);
            }
        }
    }
}
