//! `[model]` and `[moe]`: the shape of the transformer and of its experts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wattle_router::{BalanceLoss, RouterConfig, Scoring};

use crate::config::Problem;
use crate::config::problem::{at_least_one, in_range};
use crate::model::RopeScaling;

/// The decoder: RMSNorm, rotary attention and SwiGLU feed-forward layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["d_model", "num_layers", "num_heads"]))]
pub struct ModelConfig {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Number of decoder layers.
    pub num_layers: usize,
    /// Number of query heads of each attention layer.
    pub num_heads: usize,
    /// Number of key and value heads, each shared by num_heads / num_kv_heads query heads; num_heads by
    /// default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_kv_heads: Option<usize>,
    /// Size of one head, even; d_model / num_heads by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Rows of the embedding and of the head; as many as the tokenizer has ids by default. More leaves rows unused:
    /// models from elsewhere are often padded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vocab_size: Option<usize>,
    /// Hidden size of the dense feed-forward layers. Needed without `[moe]` and with
    /// moe.num_leading_dense_layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ffn_size: Option<usize>,
    /// Base of the rotary position frequencies; larger for longer contexts.
    pub rope_theta: f64,
    /// Part of each head that turns with the position, 0 to 1; the rest knows no position.
    pub rotary_fraction: f64,
    /// Stretches positions beyond the length of the first training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
    /// Added to the mean square in every RMSNorm.
    pub norm_epsilon: f64,
    /// Whether queries and keys are RMS-normalised before the rotation, and over what; steadies large models.
    pub qk_norm: QkNorm,
    /// Whether the query, key and value projections have a bias.
    pub attention_bias: bool,
    /// Whether the output head shares the embedding's matrix.
    pub tied_embedding: bool,
    /// Attention window of each layer in tokens, itself counted, cycled over the layers; 0 is full attention.
    /// `[256, 0]` alternates. Empty is full attention everywhere.
    pub attention_windows: Vec<usize>,
    /// Number of tokens at the start of the sequence that every windowed layer sees as well.
    pub num_global_tokens: usize,
    /// Standard deviation of the initial weights.
    pub init_std: f64,
}

/// Over what queries and keys are normalised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QkNorm {
    /// They are not.
    #[default]
    None,
    /// Each head by itself, all heads with one weight (Qwen3).
    PerHead,
    /// All heads of a token together (OLMoE).
    AllHeads,
}

impl Default for ModelConfig {
    /// The sizes that a user must give are 0 and do not validate.
    fn default() -> Self {
        ModelConfig {
            d_model: 0,
            num_layers: 0,
            num_heads: 0,
            num_kv_heads: None,
            head_dim: None,
            vocab_size: None,
            ffn_size: None,
            rope_theta: 10_000.0,
            rotary_fraction: 1.0,
            rope_scaling: None,
            norm_epsilon: 1e-6,
            qk_norm: QkNorm::None,
            attention_bias: false,
            tied_embedding: true,
            attention_windows: Vec::new(),
            num_global_tokens: 0,
            init_std: 0.02,
        }
    }
}

impl ModelConfig {
    /// Number of key and value heads.
    pub fn num_kv_heads(&self) -> usize {
        self.num_kv_heads.unwrap_or(self.num_heads)
    }

    /// Size of one head; 0 when there are no heads.
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or_else(|| self.d_model.checked_div(self.num_heads).unwrap_or(0))
    }

    /// How many values of each head turn: an even number.
    pub fn rotary_dim(&self) -> usize {
        // Rounded down to a value as transformers does, then to a pair.
        (self.head_dim() as f64 * self.rotary_fraction) as usize / 2 * 2
    }

    /// Sizes of the query and key norms' weights; none without QK-norm.
    pub fn qk_norm_sizes(&self) -> Option<[usize; 2]> {
        let head_dim = self.head_dim();
        match self.qk_norm {
            QkNorm::None => None,
            QkNorm::PerHead => Some([head_dim; 2]),
            QkNorm::AllHeads => Some([self.num_heads * head_dim, self.num_kv_heads() * head_dim]),
        }
    }

    /// Attention window of `layer` in tokens; 0 is full attention.
    pub fn attention_window(&self, layer: usize) -> usize {
        match self.attention_windows.len() {
            0 => 0,
            len => self.attention_windows[layer % len],
        }
    }

    /// Everything that is wrong in this section alone.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let list = &mut problems;
        at_least_one(list, "model.d_model", self.d_model);
        at_least_one(list, "model.num_layers", self.num_layers);
        at_least_one(list, "model.num_heads", self.num_heads);
        if self.d_model > 0 && self.num_heads > 0 {
            self.validate_heads(list);
        }
        if self.vocab_size == Some(0) {
            list.push(Problem::new(
                "model.vocab_size",
                "is 0, expected at least the tokenizer's ids, or no such key",
            ));
        }
        if self.ffn_size == Some(0) {
            list.push(Problem::new("model.ffn_size", "is 0, expected at least 1, or no such key"));
        }
        in_range(list, "model.rope_theta", self.rope_theta, |x| x > 1.0, "above 1, such as 10000");
        let fraction = self.rotary_fraction;
        in_range(list, "model.rotary_fraction", fraction, |x| (0.0..=1.0).contains(&x), "0 to 1");
        list.extend(self.rope_scaling.iter().flat_map(RopeScaling::validate));
        in_range(list, "model.norm_epsilon", self.norm_epsilon, |x| x > 0.0, "above 0, such as 1e-6");
        in_range(list, "model.init_std", self.init_std, |x| x > 0.0, "above 0, such as 0.02");
        problems
    }

    fn validate_heads(&self, problems: &mut Vec<Problem>) {
        let (d_model, num_heads, num_kv_heads) = (self.d_model, self.num_heads, self.num_kv_heads());
        if num_kv_heads == 0 || !num_heads.is_multiple_of(num_kv_heads) {
            problems.push(Problem::new(
                "model.num_kv_heads",
                format!("is {num_kv_heads}, expected a divisor of model.num_heads = {num_heads}"),
            ));
        }
        if self.head_dim.is_none() && !d_model.is_multiple_of(num_heads) {
            problems.push(Problem::new(
                "model.num_heads",
                format!(
                    "is {num_heads}, expected a divisor of model.d_model = {d_model}; or give model.head_dim"
                ),
            ));
        } else if self.head_dim() == 0 || self.head_dim() % 2 == 1 {
            problems.push(Problem::new(
                "model.head_dim",
                format!(
                    "is {}, expected an even size above 0: rotary positions turn pairs of values",
                    self.head_dim()
                ),
            ));
        }
    }
}

/// Mixture-of-experts feed-forward layers. Without this section every layer is dense.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["num_experts", "top_k", "expert_ffn_size"]))]
pub struct MoeConfig {
    /// Number of routed experts of each MoE layer.
    pub num_experts: usize,
    /// Number of routed experts that each token goes through.
    pub top_k: usize,
    /// Hidden size of one routed expert.
    pub expert_ffn_size: usize,
    /// Number of shared experts that every token goes through; they are one feed-forward layer of hidden size
    /// num_shared_experts * expert_ffn_size.
    pub num_shared_experts: usize,
    /// Number of layers at the bottom that stay dense, with hidden size model.ffn_size.
    pub num_leading_dense_layers: usize,
    /// How router logits become scores.
    pub scoring: Scoring,
    /// Whether the weights of a token's chosen experts are scaled to sum to 1. With top_k = 1 that
    /// makes each weight 1, and only the balance and z losses teach the router.
    pub renormalise: bool,
    /// Factor on the weights of the chosen experts, after renormalising.
    pub routed_scaling_factor: f64,
    /// Most tokens an expert takes, as a multiple of its even share; tokens beyond it are dropped. Without this
    /// key no token is dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity_factor: Option<f64>,
    /// Over which tokens the load-balancing loss looks at the balance.
    pub balance_loss: BalanceLoss,
    /// Weight of the load-balancing loss in the training loss.
    pub balance_loss_coefficient: f64,
    /// Weight of the router z-loss, which keeps router logits small, in the training loss; 0 switches it off.
    pub z_loss_coefficient: f64,
    /// Change of each expert's selection bias per step towards an even load, without a loss; 0 switches it off.
    pub bias_update_rate: f64,
}

impl Default for MoeConfig {
    /// The sizes that a user must give are 0 and do not validate.
    fn default() -> Self {
        MoeConfig {
            num_experts: 0,
            top_k: 0,
            expert_ffn_size: 0,
            num_shared_experts: 0,
            num_leading_dense_layers: 0,
            scoring: Scoring::Softmax,
            renormalise: true,
            routed_scaling_factor: 1.0,
            capacity_factor: None,
            balance_loss: BalanceLoss::MicroBatch,
            balance_loss_coefficient: 0.01,
            z_loss_coefficient: 0.0,
            bias_update_rate: 0.0,
        }
    }
}

impl MoeConfig {
    /// The settings of the router, in the precision that it computes in.
    pub fn router(&self) -> RouterConfig {
        RouterConfig {
            num_experts: self.num_experts,
            top_k: self.top_k,
            num_shared_experts: self.num_shared_experts,
            scoring: self.scoring,
            renormalise: self.renormalise,
            routed_scaling_factor: self.routed_scaling_factor as f32,
            capacity_factor: self.capacity_factor.map(|factor| factor as f32),
            balance_loss: self.balance_loss,
            balance_loss_coefficient: self.balance_loss_coefficient as f32,
            z_loss_coefficient: self.z_loss_coefficient as f32,
            bias_update_rate: self.bias_update_rate as f32,
        }
    }

    /// Everything that is wrong in this section for a model.
    pub fn validate(&self, model: &ModelConfig) -> Vec<Problem> {
        // Without experts there is no bound on top_k to tell.
        let is_news = |key: &str| self.num_experts > 0 || key != "top_k";
        let router_problems = self.router().validate().into_iter().filter(|problem| is_news(problem.key));
        let mut problems: Vec<Problem> = router_problems
            .map(|problem| Problem::new(format!("moe.{}", problem.key), problem.message))
            .collect();
        at_least_one(&mut problems, "moe.expert_ffn_size", self.expert_ffn_size);
        if model.num_layers > 0 && self.num_leading_dense_layers >= model.num_layers {
            problems.push(Problem::new(
                "moe.num_leading_dense_layers",
                format!(
                    "is {}, expected fewer than model.num_layers = {}; for a dense model leave [moe] out",
                    self.num_leading_dense_layers, model.num_layers
                ),
            ));
        }
        problems
    }
}
