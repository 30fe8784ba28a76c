//! The families of models that are read and written, and which of them can say what a model is.

use wattle_router::Scoring;

use crate::model::config::{ModelConfig, MoeConfig, QkNorm};

/// A family of models in transformers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Dense, without QK-norm.
    Llama,
    /// Dense, QK-norm per head.
    Qwen3,
    /// Softmax routing, weights renormalised.
    Mixtral,
    /// Softmax routing, QK-norm over all heads.
    Olmoe,
    /// Softmax routing, QK-norm per head.
    Qwen3Moe,
    /// Sigmoid routing with a selection bias, shared experts, leading dense layers.
    Glm4Moe,
}

impl Family {
    /// All of them.
    pub const ALL: [Family; 6] =
        [Family::Llama, Family::Qwen3, Family::Mixtral, Family::Olmoe, Family::Qwen3Moe, Family::Glm4Moe];

    /// `model_type` in config.json.
    pub fn model_type(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Qwen3 => "qwen3",
            Family::Mixtral => "mixtral",
            Family::Olmoe => "olmoe",
            Family::Qwen3Moe => "qwen3_moe",
            Family::Glm4Moe => "glm4_moe",
        }
    }

    /// The class in `architectures` of config.json.
    pub fn architecture(self) -> &'static str {
        match self {
            Family::Llama => "LlamaForCausalLM",
            Family::Qwen3 => "Qwen3ForCausalLM",
            Family::Mixtral => "MixtralForCausalLM",
            Family::Olmoe => "OlmoeForCausalLM",
            Family::Qwen3Moe => "Qwen3MoeForCausalLM",
            Family::Glm4Moe => "Glm4MoeForCausalLM",
        }
    }

    /// The family that can say what a model is; else why each cannot, one line a family.
    pub fn of(model: &ModelConfig, moe: Option<&MoeConfig>) -> Result<Family, Vec<String>> {
        let mut reasons = Vec::new();
        for family in Family::ALL {
            match family.obstacle(model, moe) {
                None => return Ok(family),
                Some(reason) => reasons.push(format!("{}: {reason}", family.model_type())),
            }
        }
        Err(reasons)
    }

    /// What of a model the family cannot say; none when it can say all.
    fn obstacle(self, model: &ModelConfig, moe: Option<&MoeConfig>) -> Option<String> {
        let refuse = |text: &str| Some(text.to_owned());
        if model.num_global_tokens > 0 {
            return refuse("knows no global tokens (model.num_global_tokens)");
        }
        let qk_norms: &[QkNorm] = match self {
            Family::Llama | Family::Mixtral => &[QkNorm::None],
            Family::Qwen3 | Family::Qwen3Moe => &[QkNorm::PerHead],
            Family::Olmoe => &[QkNorm::AllHeads],
            Family::Glm4Moe => &[QkNorm::None, QkNorm::PerHead],
        };
        if !qk_norms.contains(&model.qk_norm) {
            return refuse("has another QK-norm (model.qk_norm)");
        }
        if model.attention_bias && self != Family::Glm4Moe {
            return refuse("has a bias on the output projection too (model.attention_bias)");
        }
        if model.rotary_fraction != 1.0 && self != Family::Glm4Moe {
            return refuse("turns whole heads (model.rotary_fraction)");
        }
        if self == Family::Olmoe && model.head_dim() * model.num_heads != model.d_model {
            return refuse("has heads that make up d_model (model.head_dim)");
        }
        let windows: Vec<usize> = (0..model.num_layers).map(|layer| model.attention_window(layer)).collect();
        let is_uniform = windows.iter().all(|window| *window == windows[0]);
        let fits = match self {
            Family::Mixtral | Family::Qwen3Moe => is_uniform,
            Family::Qwen3 => {
                let largest = windows.iter().max().copied().unwrap_or(0);
                windows.iter().all(|&window| window == 0 || window == largest)
            }
            Family::Llama | Family::Olmoe | Family::Glm4Moe => is_uniform && model.attention_window(0) == 0,
        };
        if !fits {
            return refuse("has no such windows (model.attention_windows)");
        }
        match (self, moe) {
            (Family::Llama | Family::Qwen3, None) => None,
            (Family::Llama | Family::Qwen3, Some(_)) => refuse("is dense"),
            (_, None) => refuse("has experts"),
            (_, Some(moe)) => self.obstacle_in_experts(moe),
        }
    }

    fn obstacle_in_experts(self, moe: &MoeConfig) -> Option<String> {
        let refuse = |text: &str| Some(text.to_owned());
        let is_glm = self == Family::Glm4Moe;
        if (moe.scoring == Scoring::Sigmoid) != is_glm {
            return refuse("scores otherwise (moe.scoring)");
        }
        if self == Family::Mixtral && !moe.renormalise {
            return refuse("renormalises the weights (moe.renormalise)");
        }
        if moe.routed_scaling_factor != 1.0 && !is_glm {
            return refuse("does not scale the weights (moe.routed_scaling_factor)");
        }
        if moe.bias_update_rate > 0.0 && !is_glm {
            return refuse("has no selection bias (moe.bias_update_rate)");
        }
        if (moe.num_shared_experts > 0) != is_glm {
            return refuse(match is_glm {
                true => "has at least one shared expert (moe.num_shared_experts)",
                false => "has no shared experts (moe.num_shared_experts)",
            });
        }
        if moe.num_leading_dense_layers > 0 && !matches!(self, Family::Glm4Moe | Family::Qwen3Moe) {
            return refuse("has experts in every layer (moe.num_leading_dense_layers)");
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(qk_norm: QkNorm) -> ModelConfig {
        ModelConfig { d_model: 32, num_layers: 2, num_heads: 4, qk_norm, ..ModelConfig::default() }
    }

    fn moe() -> MoeConfig {
        MoeConfig { num_experts: 4, top_k: 2, expert_ffn_size: 8, ..MoeConfig::default() }
    }

    #[test]
    fn each_shape_finds_its_family() {
        let sigmoid = MoeConfig {
            scoring: Scoring::Sigmoid,
            num_shared_experts: 1,
            routed_scaling_factor: 2.5,
            ..moe()
        };
        let unscaled = MoeConfig { renormalise: false, ..moe() };
        for (model, moe, family) in [
            (model(QkNorm::None), None, Family::Llama),
            (model(QkNorm::PerHead), None, Family::Qwen3),
            (model(QkNorm::None), Some(moe()), Family::Mixtral),
            (model(QkNorm::AllHeads), Some(unscaled), Family::Olmoe),
            (model(QkNorm::PerHead), Some(moe()), Family::Qwen3Moe),
            (ModelConfig { attention_bias: true, ..model(QkNorm::None) }, Some(sigmoid), Family::Glm4Moe),
        ] {
            assert_eq!(Family::of(&model, moe.as_ref()), Ok(family));
        }
    }

    #[test]
    fn a_shape_without_family_is_told_why_for_each() {
        let reasons = Family::of(&model(QkNorm::AllHeads), None).unwrap_err();
        assert_eq!(reasons.len(), Family::ALL.len());
        assert_eq!(reasons[0], "llama: has another QK-norm (model.qk_norm)");
        assert_eq!(reasons[3], "olmoe: has experts");
        let shared = MoeConfig { num_shared_experts: 1, ..moe() };
        let reasons = Family::of(&model(QkNorm::None), Some(&shared)).unwrap_err();
        assert!(reasons[2].contains("moe.num_shared_experts"), "{reasons:?}");
    }
}
