//! Under which names and in which pieces a family keeps each tensor.
//!
//! Every tensor here is the pieces there laid one after another: gate and up projections make one matrix, and so do the
//! experts of a layer. So tensors are read and written piece by piece, without a second copy, or without any.

use super::family::Family;
use crate::model::config::{ModelConfig, MoeConfig};

/// A tensor of a family's files.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
}

/// A tensor here, and what it is laid out of.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Place {
    pub(super) ours: Target,
    pub(super) shape: Vec<usize>,
    pub(super) pieces: Vec<Piece>,
}

/// A tensor here.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Target {
    /// A parameter, by name.
    Parameter(String),
    /// The selection bias of a sparse layer, counted among the sparse ones.
    RouterBias(usize),
}

/// All tensors of a model, in the order of its parameters.
pub(super) fn layout(
    family: Family,
    model: &ModelConfig,
    moe: Option<&MoeConfig>,
    vocab_size: usize,
) -> Vec<Place> {
    let d = model.d_model;
    let mut layout = Layout { places: Vec::new() };
    layout.one("model.embedding", "model.embed_tokens.weight", &[vocab_size, d]);
    let mut num_sparse = 0;
    for layer in 0..model.num_layers {
        let (ours, theirs) = (format!("model.layers.{layer}"), format!("model.layers.{layer}"));
        layout.one(&format!("{ours}.attention_norm"), &format!("{theirs}.input_layernorm.weight"), &[d]);
        layout.attention(&format!("{ours}.attention"), &format!("{theirs}.self_attn"), model);
        let norm = format!("{theirs}.post_attention_layernorm.weight");
        layout.one(&format!("{ours}.feed_forward_norm"), &norm, &[d]);
        match moe {
            Some(moe) if layer >= moe.num_leading_dense_layers => {
                layout.experts(family, &format!("{ours}.moe"), &theirs, d, moe, num_sparse);
                num_sparse += 1;
            }
            _ => {
                let ffn_size = model.ffn_size.unwrap_or(0);
                layout.dense(&format!("{ours}.feed_forward"), &format!("{theirs}.mlp"), d, ffn_size);
            }
        }
    }
    layout.one("model.final_norm", "model.norm.weight", &[d]);
    if !model.tied_embedding {
        layout.one("model.head", "lm_head.weight", &[vocab_size, d]);
    }
    layout.places
}

struct Layout {
    places: Vec<Place>,
}

impl Layout {
    fn many(&mut self, ours: &str, shape: Vec<usize>, pieces: Vec<(String, Vec<usize>)>) {
        let pieces = pieces.into_iter().map(|(name, shape)| Piece { name, shape }).collect();
        self.places.push(Place { ours: Target::Parameter(ours.to_owned()), shape, pieces });
    }

    fn one(&mut self, ours: &str, theirs: &str, shape: &[usize]) {
        self.many(ours, shape.to_vec(), vec![(theirs.to_owned(), shape.to_vec())]);
    }

    fn attention(&mut self, ours: &str, theirs: &str, model: &ModelConfig) {
        let (d, head_dim) = (model.d_model, model.head_dim());
        let (of_query, of_kv) = (model.num_heads * head_dim, model.num_kv_heads() * head_dim);
        let projections =
            [("query", "q_proj", of_query), ("key", "k_proj", of_kv), ("value", "v_proj", of_kv)];
        if let Some([query_norm, key_norm]) = model.qk_norm_sizes() {
            self.one(&format!("{ours}.query_norm"), &format!("{theirs}.q_norm.weight"), &[query_norm]);
            self.one(&format!("{ours}.key_norm"), &format!("{theirs}.k_norm.weight"), &[key_norm]);
        }
        for (name, theirs_name, size) in projections.into_iter().filter(|_| model.attention_bias) {
            self.one(&format!("{ours}.{name}_bias"), &format!("{theirs}.{theirs_name}.bias"), &[size]);
        }
        for (name, theirs_name, size) in projections {
            self.one(&format!("{ours}.{name}"), &format!("{theirs}.{theirs_name}.weight"), &[size, d]);
        }
        self.one(&format!("{ours}.output"), &format!("{theirs}.o_proj.weight"), &[d, of_query]);
    }

    fn dense(&mut self, ours: &str, theirs: &str, d: usize, f: usize) {
        self.many(
            &format!("{ours}.gate_up"),
            vec![2 * f, d],
            vec![
                (format!("{theirs}.gate_proj.weight"), vec![f, d]),
                (format!("{theirs}.up_proj.weight"), vec![f, d]),
            ],
        );
        self.one(&format!("{ours}.down"), &format!("{theirs}.down_proj.weight"), &[d, f]);
    }

    fn experts(
        &mut self,
        family: Family,
        ours: &str,
        theirs: &str,
        d: usize,
        moe: &MoeConfig,
        sparse_layer: usize,
    ) {
        let (e, f) = (moe.num_experts, moe.expert_ffn_size);
        let (block, [gate, up, down]) = match family {
            Family::Mixtral => ("block_sparse_moe", ["w1", "w3", "w2"]),
            _ => ("mlp", ["gate_proj", "up_proj", "down_proj"]),
        };
        let block = format!("{theirs}.{block}");
        let of_expert = |expert: usize, name: &str| format!("{block}.experts.{expert}.{name}.weight");
        self.one(&format!("{ours}.router"), &format!("{block}.gate.weight"), &[e, d]);
        let gate_up = (0..e)
            .flat_map(|expert| [(of_expert(expert, gate), vec![f, d]), (of_expert(expert, up), vec![f, d])]);
        self.many(&format!("{ours}.gate_up"), vec![e, 2 * f, d], gate_up.collect());
        let downs = (0..e).map(|expert| (of_expert(expert, down), vec![d, f]));
        self.many(&format!("{ours}.down"), vec![e, d, f], downs.collect());
        if moe.num_shared_experts > 0 {
            let shared = format!("{block}.shared_experts");
            self.dense(&format!("{ours}.shared"), &shared, d, moe.num_shared_experts * f);
        }
        if family == Family::Glm4Moe {
            let name = format!("{block}.gate.e_score_correction_bias");
            let pieces = vec![Piece { name, shape: vec![e] }];
            self.places.push(Place { ours: Target::RouterBias(sparse_layer), shape: vec![e], pieces });
        }
    }
}
