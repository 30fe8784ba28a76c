//! config.json: a model's shape in the words of its family, read and written.

use serde_json::{Map, Value, json};
use wattle_router::{BalanceLoss, Scoring};

use super::family::Family;
use super::fields::Fields;
use super::rope;
use crate::model::config::{ModelConfig, MoeConfig, QkNorm};

/// Keys that change nothing of what this engine computes from the weights.
const HARMLESS: [&str; 24] = [
    "_name_or_path",
    "architectures",
    "auto_map",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "id2label",
    "initializer_range",
    "keys_to_ignore_at_inference",
    "label2id",
    "max_window_layers",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "router_jitter_noise",
    "torch_dtype",
    "transformers_version",
    "unsloth_version",
    "use_cache",
    "num_nextn_predict_layers",
];

/// A model's shape, and what transformers keeps beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct HuggingFaceConfig {
    /// Its family.
    pub family: Family,
    /// The transformer.
    pub model: ModelConfig,
    /// Its experts.
    pub moe: Option<MoeConfig>,
    /// Rows of the embedding, at least the tokenizer's ids.
    pub vocab_size: usize,
    /// The longest sequence it may see.
    pub max_positions: usize,
}

impl HuggingFaceConfig {
    /// Reads a config.json. Every key that would change the numbers is honoured or named in the error.
    ///
    /// # Errors
    /// All problems, one line each.
    pub fn from_json(text: &str) -> Result<Self, Vec<String>> {
        let map: Map<String, Value> =
            serde_json::from_str(text).map_err(|error| vec![format!("is no JSON object: {error}")])?;
        let mut fields = Fields::new(map);
        let known = || Family::ALL.map(Family::model_type).join(", ");
        let Some(model_type) = fields.text("model_type") else {
            return Err(vec![format!("model_type is missing, expected one of {}", known())]);
        };
        let Some(family) = Family::ALL.into_iter().find(|family| family.model_type() == model_type) else {
            return Err(vec![format!("model_type is \"{model_type}\", expected one of {}", known())]);
        };
        let vocab_size = fields.required_size("vocab_size");
        let max_positions = fields.required_size("max_position_embeddings");
        let mut model = read_model(&mut fields, family, max_positions);
        let moe = read_moe(&mut fields, family, &mut model);
        fields.only("hidden_act", &json!("silu"));
        fields.only("attention_dropout", &json!(0.0));
        fields.ignore(&HARMLESS);
        // A number, or a list of them: generation stops at the tokenizer's own end.
        fields.ignore(&["eos_token_id"]);
        let mut problems = fields.finish();
        if problems.is_empty() {
            let found = model.validate().into_iter().chain(moe.iter().flat_map(|moe| moe.validate(&model)));
            problems.extend(found.map(|problem| format!("{} {}", problem.key, problem.message)));
        }
        match problems.is_empty() {
            true => Ok(HuggingFaceConfig { family, model, moe, vocab_size, max_positions }),
            false => Err(problems),
        }
    }

    /// The config.json of a model.
    pub fn to_json(&self, end_token: Option<u32>, dtype: &str) -> Value {
        let (family, model) = (self.family, &self.model);
        let mut out = Map::new();
        let mut set = |key: &str, value: Value| out.insert(key.to_owned(), value);
        set("architectures", json!([family.architecture()]));
        set("model_type", json!(family.model_type()));
        set("dtype", json!(dtype));
        set("vocab_size", json!(self.vocab_size));
        set("hidden_size", json!(model.d_model));
        set("num_hidden_layers", json!(model.num_layers));
        set("num_attention_heads", json!(model.num_heads));
        set("num_key_value_heads", json!(model.num_kv_heads()));
        if family != Family::Olmoe {
            set("head_dim", json!(model.head_dim()));
        }
        set("max_position_embeddings", json!(self.max_positions));
        set("rms_norm_eps", json!(model.norm_epsilon));
        set("rope_parameters", rope::write(model));
        set("hidden_act", json!("silu"));
        set("attention_dropout", json!(0.0));
        set("tie_word_embeddings", json!(model.tied_embedding));
        set("initializer_range", json!(model.init_std));
        set("bos_token_id", json!(end_token));
        set("eos_token_id", json!(end_token));
        set("use_cache", json!(true));
        if family != Family::Mixtral {
            set("attention_bias", json!(model.attention_bias));
        }
        self.write_windows(&mut set);
        match &self.moe {
            None => {
                set("intermediate_size", json!(model.ffn_size.unwrap_or(0)));
            }
            Some(moe) => self.write_moe(moe, &mut set),
        }
        out.into()
    }

    fn write_windows<T>(&self, set: &mut impl FnMut(&str, Value) -> T) {
        let model = &self.model;
        let windows: Vec<usize> = (0..model.num_layers).map(|layer| model.attention_window(layer)).collect();
        let window = windows.iter().max().copied().filter(|&window| window > 0);
        match self.family {
            Family::Mixtral => drop(set("sliding_window", json!(window))),
            Family::Qwen3Moe => {
                set("sliding_window", json!(window));
                set("use_sliding_window", json!(window.is_some()));
            }
            Family::Qwen3 => {
                set("sliding_window", json!(window));
                set("use_sliding_window", json!(window.is_some()));
                let kind = |&window: &usize| if window > 0 { "sliding_attention" } else { "full_attention" };
                set("layer_types", json!(windows.iter().map(kind).collect::<Vec<_>>()));
            }
            Family::Llama | Family::Olmoe | Family::Glm4Moe => {}
        }
    }

    fn write_moe<T>(&self, moe: &MoeConfig, set: &mut impl FnMut(&str, Value) -> T) {
        set("num_experts_per_tok", json!(moe.top_k));
        set("output_router_logits", json!(false));
        let dense_size = self.model.ffn_size.unwrap_or(moe.expert_ffn_size);
        match self.family {
            Family::Mixtral => {
                set("num_local_experts", json!(moe.num_experts));
                set("intermediate_size", json!(moe.expert_ffn_size));
            }
            Family::Olmoe => {
                set("num_experts", json!(moe.num_experts));
                set("intermediate_size", json!(moe.expert_ffn_size));
                set("norm_topk_prob", json!(moe.renormalise));
            }
            Family::Qwen3Moe => {
                set("num_experts", json!(moe.num_experts));
                set("moe_intermediate_size", json!(moe.expert_ffn_size));
                set("intermediate_size", json!(dense_size));
                set("norm_topk_prob", json!(moe.renormalise));
                set("decoder_sparse_step", json!(1));
                set("mlp_only_layers", json!((0..moe.num_leading_dense_layers).collect::<Vec<_>>()));
            }
            Family::Glm4Moe => {
                set("n_routed_experts", json!(moe.num_experts));
                set("n_shared_experts", json!(moe.num_shared_experts));
                set("moe_intermediate_size", json!(moe.expert_ffn_size));
                set("intermediate_size", json!(dense_size));
                set("first_k_dense_replace", json!(moe.num_leading_dense_layers));
                set("norm_topk_prob", json!(moe.renormalise));
                set("routed_scaling_factor", json!(moe.routed_scaling_factor));
                set("n_group", json!(1));
                set("topk_group", json!(1));
                set("use_qk_norm", json!(self.model.qk_norm == QkNorm::PerHead));
                set("num_nextn_predict_layers", json!(0));
            }
            Family::Llama | Family::Qwen3 => {}
        }
    }
}

fn read_model(fields: &mut Fields, family: Family, max_positions: usize) -> ModelConfig {
    let d_model = fields.required_size("hidden_size");
    let num_layers = fields.required_size("num_hidden_layers");
    let num_heads = fields.required_size("num_attention_heads");
    let is_glm = family == Family::Glm4Moe;
    let mut model = ModelConfig {
        d_model,
        num_layers,
        num_heads,
        num_kv_heads: Some(fields.size("num_key_value_heads").unwrap_or(num_heads)),
        head_dim: fields.size("head_dim").or_else(|| d_model.checked_div(num_heads)),
        norm_epsilon: fields.number("rms_norm_eps").unwrap_or(if is_glm { 1e-5 } else { 1e-6 }),
        rotary_fraction: if is_glm { 0.5 } else { 1.0 },
        tied_embedding: fields.flag("tie_word_embeddings").unwrap_or(false),
        qk_norm: match family {
            Family::Llama | Family::Mixtral => QkNorm::None,
            Family::Qwen3 | Family::Qwen3Moe => QkNorm::PerHead,
            Family::Olmoe => QkNorm::AllHeads,
            Family::Glm4Moe => match fields.flag("use_qk_norm") {
                Some(true) => QkNorm::PerHead,
                _ => QkNorm::None,
            },
        },
        ..ModelConfig::default()
    };
    if is_glm {
        model.attention_bias = fields.flag("attention_bias").unwrap_or(false);
    } else {
        // There it adds a bias to the output projection too.
        fields.only("attention_bias", &json!(false));
    }
    fields.only("mlp_bias", &json!(false));
    fields.only("clip_qkv", &Value::Null);
    rope::read(fields, &mut model, max_positions);
    read_windows(fields, family, &mut model);
    model
}

fn read_windows(fields: &mut Fields, family: Family, model: &mut ModelConfig) {
    let window = fields.size("sliding_window");
    let is_used = fields.flag("use_sliding_window");
    let from_layer = fields.size("max_window_layers");
    let layer_types = fields.texts("layer_types");
    let window = match family {
        Family::Qwen3 | Family::Qwen3Moe if is_used != Some(true) => None,
        _ => window,
    };
    let kinds = match (family, window, layer_types) {
        (_, None, _) => return,
        (Family::Qwen3, Some(_), Some(kinds)) => kinds,
        // Without a list the layers from max_window_layers on have the window.
        (Family::Qwen3, Some(_), None) => (0..model.num_layers)
            .map(|layer| match from_layer.is_some_and(|from| layer < from) {
                true => "full_attention".to_owned(),
                false => "sliding_attention".to_owned(),
            })
            .collect(),
        (_, Some(window), _) => {
            model.attention_windows = vec![window];
            return;
        }
    };
    if kinds.len() != model.num_layers {
        let problem = format!("layer_types has {} entries for {} layers", kinds.len(), model.num_layers);
        fields.problems.push(problem);
    }
    model.attention_windows = kinds
        .iter()
        .map(|kind| match kind.as_str() {
            "full_attention" => 0,
            "sliding_attention" => window.unwrap_or(0),
            other => {
                fields.problems.push(format!("layer_types has \"{other}\", which is not supported"));
                0
            }
        })
        .collect();
}

fn read_moe(fields: &mut Fields, family: Family, model: &mut ModelConfig) -> Option<MoeConfig> {
    if matches!(family, Family::Llama | Family::Qwen3) {
        model.ffn_size = Some(fields.required_size("intermediate_size"));
        return None;
    }
    let count_keys = ["num_local_experts", "num_experts", "n_routed_experts"];
    let mut counts = count_keys.iter().filter_map(|key| fields.size(key)).collect::<Vec<_>>();
    counts.dedup();
    if counts.len() != 1 {
        fields.problems.push(format!("expected one of {}, or all alike", count_keys.join(", ")));
    }
    let coefficient = fields.number("router_aux_loss_coef");
    let mut moe = MoeConfig {
        num_experts: counts.first().copied().unwrap_or(0),
        top_k: fields.required_size("num_experts_per_tok"),
        balance_loss: BalanceLoss::MicroBatch,
        balance_loss_coefficient: coefficient.unwrap_or(0.0),
        ..MoeConfig::default()
    };
    match family {
        Family::Mixtral | Family::Olmoe => moe.expert_ffn_size = fields.required_size("intermediate_size"),
        _ => {
            moe.expert_ffn_size = fields.required_size("moe_intermediate_size");
            model.ffn_size = fields.size("intermediate_size");
        }
    }
    match family {
        Family::Mixtral => {}
        Family::Olmoe => moe.renormalise = fields.flag("norm_topk_prob").unwrap_or(false),
        Family::Qwen3Moe => {
            moe.renormalise = fields.flag("norm_topk_prob").unwrap_or(false);
            fields.only("decoder_sparse_step", &json!(1));
            let dense = fields.sizes("mlp_only_layers").unwrap_or_default();
            moe.num_leading_dense_layers = dense.len();
            if !dense.iter().copied().eq(0..dense.len()) {
                let problem = format!("mlp_only_layers is {dense:?}; only the first layers can be dense");
                fields.problems.push(problem);
            }
        }
        _ => {
            moe.scoring = Scoring::Sigmoid;
            moe.balance_loss = BalanceLoss::None;
            moe.renormalise = fields.flag("norm_topk_prob").unwrap_or(true);
            moe.num_shared_experts = fields.required_size("n_shared_experts");
            moe.num_leading_dense_layers = fields.required_size("first_k_dense_replace");
            moe.routed_scaling_factor = fields.number("routed_scaling_factor").unwrap_or(1.0);
            fields.only("n_group", &json!(1));
            fields.only("topk_group", &json!(1));
        }
    }
    if moe.num_leading_dense_layers == 0 {
        model.ffn_size = None;
    }
    Some(moe)
}
