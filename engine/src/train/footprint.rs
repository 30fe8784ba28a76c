//! The size of a model on paper: its parameters, and the bytes that training it needs on one device.

use wattle_kernels::DType;

use crate::model::config::{ModelConfig, MoeConfig, QkNorm};

/// Parameters and bytes, computed from the shape alone. Sums are exact below 2^53.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Footprint {
    /// All parameters.
    pub total_params: f64,
    /// Parameters that one token goes through: all but the experts that are not chosen for it.
    pub active_params: f64,
    /// Master weights, f32.
    pub weight_bytes: f64,
    /// bf16 copies of the matrices, under mixed precision.
    pub copy_bytes: f64,
    /// Gradients, f32.
    pub gradient_bytes: f64,
    /// AdamW's two moments, f32.
    pub moment_bytes: f64,
    /// What the forward pass of one micro-batch keeps for the backward pass.
    pub activation_bytes: f64,
}

impl Footprint {
    /// The size of a model that computes in `compute` on micro-batches of `num_tokens` tokens.
    pub fn new(
        model: &ModelConfig,
        moe: Option<&MoeConfig>,
        vocab_size: usize,
        compute: DType,
        num_tokens: usize,
    ) -> Self {
        let shape = Shape::new(model, moe);
        let [d, v] = [model.d_model, vocab_size].map(|size| size as f64);
        let num_tables = if model.tied_embedding { 1.0 } else { 2.0 };
        let total_params = num_tables * v * d
            + d
            + shape.num_layers * (shape.attention_matrices + shape.vectors)
            + shape.num_dense * shape.dense
            + shape.num_sparse * (shape.router + shape.expert * shape.num_experts + shape.shared);
        let idle_params = shape.num_sparse * shape.expert * (shape.num_experts - shape.top_k);
        // Norms, biases and routers compute in f32 and have no copy.
        let without_copy = d + shape.num_layers * shape.vectors + shape.num_sparse * shape.router;
        let (copy_size, value_size) = match compute {
            DType::Bf16 => (2.0, 2.0),
            _ => (0.0, 4.0),
        };
        Footprint {
            total_params,
            active_params: total_params - idle_params,
            weight_bytes: 4.0 * total_params,
            copy_bytes: copy_size * (total_params - without_copy),
            gradient_bytes: 4.0 * total_params,
            moment_bytes: 8.0 * total_params,
            activation_bytes: num_tokens as f64 * shape.bytes_per_token(value_size),
        }
    }

    /// All bytes together.
    pub fn total_bytes(&self) -> f64 {
        self.weight_bytes + self.copy_bytes + self.gradient_bytes + self.moment_bytes + self.activation_bytes
    }
}

/// Sizes of one layer's parts, in weights, and of the values that are kept for each token.
struct Shape {
    num_layers: f64,
    num_dense: f64,
    num_sparse: f64,
    attention_matrices: f64,
    /// Norms and biases of a layer.
    vectors: f64,
    dense: f64,
    router: f64,
    /// One routed expert.
    expert: f64,
    /// All shared experts.
    shared: f64,
    num_experts: f64,
    top_k: f64,
    d: f64,
    /// x, its norm, q, k, v, the heads' output; x and its norm before the feed-forward.
    attention_values: f64,
    /// gate, up and their product.
    dense_values: f64,
    /// gate and up of the chosen experts; gate, up and product of the shared ones.
    sparse_values: f64,
}

impl Shape {
    fn new(model: &ModelConfig, moe: Option<&MoeConfig>) -> Self {
        let [d, layers, heads, kv_heads, head] =
            [model.d_model, model.num_layers, model.num_heads, model.num_kv_heads(), model.head_dim()]
                .map(|size| size as f64);
        let (query, key) = (heads * head, kv_heads * head);
        let norms = match model.qk_norm {
            QkNorm::None => 0.0,
            QkNorm::PerHead => 2.0 * head,
            QkNorm::AllHeads => query + key,
        };
        let biases = if model.attention_bias { query + 2.0 * key } else { 0.0 };
        let before_norm = if model.qk_norm == QkNorm::None { 0.0 } else { query + key };
        let num_dense = moe.map_or(layers, |moe| (moe.num_leading_dense_layers as f64).min(layers));
        let dense_ffn = model.ffn_size.unwrap_or(0) as f64;
        let [experts, top_k, ffn, num_shared] = moe.map_or([0.0; 4], |moe| {
            [moe.num_experts, moe.top_k, moe.expert_ffn_size, moe.num_shared_experts].map(|size| size as f64)
        });
        Shape {
            num_layers: layers,
            num_dense,
            num_sparse: layers - num_dense,
            attention_matrices: d * (2.0 * query + 2.0 * key),
            vectors: 2.0 * d + norms + biases,
            dense: 3.0 * d * dense_ffn,
            router: experts * d,
            expert: 3.0 * d * ffn,
            shared: 3.0 * d * ffn * num_shared,
            num_experts: experts,
            top_k,
            d,
            attention_values: 4.0 * d + 2.0 * query + 2.0 * key + before_norm,
            dense_values: 3.0 * dense_ffn,
            sparse_values: (2.0 * top_k + 3.0 * num_shared) * ffn,
        }
    }

    /// `value_size` is that of an activation, in bytes.
    fn bytes_per_token(&self, value_size: f64) -> f64 {
        // The router sees f32: under mixed precision it keeps a copy of its input, and always its logits.
        let router_input = if value_size < 4.0 { 4.0 * self.d } else { 0.0 };
        let router = self.num_sparse * (router_input + 4.0 * self.num_experts);
        // The last x, its norm and the gradient of that.
        let head = 3.0 * self.d;
        let values = self.num_layers * self.attention_values
            + self.num_dense * self.dense_values
            + self.num_sparse * self.sparse_values
            + head;
        values * value_size + router
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Decoder, ParameterStore, presets};
    use wattle_kernels::Tensor;

    fn model() -> ModelConfig {
        ModelConfig {
            d_model: 24,
            num_layers: 3,
            num_heads: 4,
            num_kv_heads: Some(2),
            head_dim: Some(8),
            ffn_size: Some(40),
            ..ModelConfig::default()
        }
    }

    fn experts() -> MoeConfig {
        MoeConfig {
            num_experts: 8,
            top_k: 2,
            expert_ffn_size: 16,
            num_shared_experts: 1,
            num_leading_dense_layers: 1,
            ..MoeConfig::default()
        }
    }

    /// A built model has the same parameters and copies to the last weight.
    #[test]
    fn the_paper_counts_what_a_built_model_holds() {
        let untied = ModelConfig { tied_embedding: false, attention_bias: true, ..model() };
        for model in [
            model(),
            ModelConfig { qk_norm: QkNorm::PerHead, ..model() },
            ModelConfig { qk_norm: QkNorm::AllHeads, ..untied },
        ] {
            for moe in [None, Some(experts())] {
                for compute in [DType::F32, DType::Bf16] {
                    let moe = moe.as_ref();
                    let mut store = ParameterStore::default();
                    Decoder::new(&mut store, &model, moe, 50, 16, compute, None).unwrap();
                    let copies = store.iter().filter_map(|parameter| parameter.compute.as_ref());
                    let copy_bytes: usize = copies.map(Tensor::size_in_bytes).sum();
                    let paper = Footprint::new(&model, moe, 50, compute, 1);
                    assert_eq!(paper.total_params, store.num_weights() as f64);
                    assert_eq!(paper.copy_bytes, copy_bytes as f64);
                    let state = paper.weight_bytes + paper.gradient_bytes + paper.moment_bytes;
                    assert_eq!(state, 16.0 * store.num_weights() as f64);
                }
            }
        }
    }

    #[test]
    fn only_the_experts_not_chosen_are_idle() {
        let paper = Footprint::new(&model(), Some(&experts()), 50, DType::F32, 1);
        assert_eq!(paper.total_params - paper.active_params, (2 * (8 - 2) * 3 * 24 * 16) as f64);
        let dense = Footprint::new(&model(), None, 50, DType::F32, 1);
        assert_eq!(dense.active_params, dense.total_params);
    }

    /// Origin: docs/performance.md, which counts 338 MB of state and 6 * (29.4 + 33.6) MB of activations in the layers
    /// of preset S; the head's three values of d a token and the router's logits come on top.
    #[test]
    fn preset_s_needs_what_the_performance_notes_say() {
        let s = presets::preset("S").unwrap();
        let num_tokens = s.batch * s.sequence_length;
        let paper = Footprint::new(&s.model, Some(&s.moe), s.vocab_size, DType::F32, num_tokens);
        let state = paper.weight_bytes + paper.gradient_bytes + paper.moment_bytes;
        assert_eq!((state / 1e6).round(), 338.0);
        let beside_the_layers = (4096 * (3 * 256 + 6 * 8) * 4) as f64;
        let layer_megabytes = (paper.activation_bytes - beside_the_layers) / 6.0 / 1e6;
        assert!((layer_megabytes - (29.4 + 33.6)).abs() < 0.1, "{layer_megabytes}");
    }
}
