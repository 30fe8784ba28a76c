//! Grouped-query self-attention with rotary positions, optional QK-norm and an optional window.

use std::sync::Arc;

use wattle_kernels::ops::attention::Mask;
use wattle_kernels::ops::rope::RopeTable;
use wattle_router::Result;

use crate::autograd::{Tape, Var};
use crate::model::cache::LayerCache;
use crate::model::config::{ModelConfig, QkNorm};
use crate::model::decoder::Builder;
use crate::model::{Init, ParamId};

/// One attention layer: x `[b, t, d]` -> `[b, t, d]`.
#[derive(Debug)]
pub struct Attention {
    query: ParamId,
    key: ParamId,
    value: ParamId,
    output: ParamId,
    /// Biases of query, key and value.
    biases: Option<[ParamId; 3]>,
    qk_norm: QkNorm,
    /// Weights of the query and key norms, when QK-norm is on.
    norms: Option<[ParamId; 2]>,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    norm_epsilon: f32,
    mask: Mask,
    rope: Arc<RopeTable>,
}

impl Attention {
    /// Adds the layer's parameters under `name`.
    ///
    /// # Errors
    /// Out of memory.
    pub(super) fn new(
        build: &mut Builder,
        name: &str,
        config: &ModelConfig,
        mask: Mask,
        rope: &Arc<RopeTable>,
    ) -> Result<Self> {
        let (d, head_dim) = (config.d_model, config.head_dim());
        let (query_dim, kv_dim) = (config.num_heads * head_dim, config.num_kv_heads() * head_dim);
        let norms = match config.qk_norm_sizes() {
            None => None,
            Some([of_query, of_key]) => Some([
                build.add(&format!("{name}.query_norm"), &[of_query], Init::Ones)?,
                build.add(&format!("{name}.key_norm"), &[of_key], Init::Ones)?,
            ]),
        };
        let biases = match config.attention_bias {
            false => None,
            true => Some([
                build.add(&format!("{name}.query_bias"), &[query_dim], Init::Zeros)?,
                build.add(&format!("{name}.key_bias"), &[kv_dim], Init::Zeros)?,
                build.add(&format!("{name}.value_bias"), &[kv_dim], Init::Zeros)?,
            ]),
        };
        Ok(Attention {
            query: build.add(&format!("{name}.query"), &[query_dim, d], build.input_init())?,
            key: build.add(&format!("{name}.key"), &[kv_dim, d], build.input_init())?,
            value: build.add(&format!("{name}.value"), &[kv_dim, d], build.input_init())?,
            output: build.add(&format!("{name}.output"), &[d, query_dim], build.output_init())?,
            biases,
            qk_norm: config.qk_norm,
            norms,
            num_heads: config.num_heads,
            num_kv_heads: config.num_kv_heads(),
            head_dim,
            norm_epsilon: config.norm_epsilon as f32,
            mask,
            rope: Arc::clone(rope),
        })
    }

    /// The layer's contribution to the residual stream. With a cache, x holds only the tokens after those cached.
    ///
    /// # Errors
    /// Any kernel error.
    pub(super) fn forward(
        &self,
        tape: &mut Tape,
        x_btd: &Var,
        cache: Option<&mut LayerCache>,
        start_position: usize,
    ) -> Result<Var> {
        let [b, t] = [x_btd.value.shape()[0], x_btd.value.shape()[1]];
        let [query_bias, key_bias, value_bias] = self.biases.map_or([None; 3], |biases| biases.map(Some));
        let [query_norm, key_norm] = self.norms.map_or([None; 2], |norms| norms.map(Some));
        let query = self.heads(tape, x_btd, [b, t, self.num_heads], self.query, query_bias, query_norm)?;
        let key = self.heads(tape, x_btd, [b, t, self.num_kv_heads], self.key, key_bias, key_norm)?;
        let value = self.heads(tape, x_btd, [b, t, self.num_kv_heads], self.value, value_bias, None)?;
        let query = tape.rope(query, &self.rope, start_position)?;
        let mut key = tape.rope(key, &self.rope, start_position)?;
        let mut value = value;
        if let Some(cache) = cache {
            let (keys, values) = cache.append(&key.value, &value.value)?;
            (key, value) = (tape.input(keys), tape.input(values));
        }
        let scale = (self.head_dim as f32).sqrt().recip();
        let mixed = tape.attention(&query, &key, &value, &self.mask, scale, start_position)?;
        let mixed = tape.reshape(&mixed, &[b, t, self.num_heads * self.head_dim])?;
        tape.linear(&mixed, self.output)
    }

    /// x projected to heads `[b, t, h, head]`, with what bias and norm there are.
    fn heads(
        &self,
        tape: &mut Tape,
        x: &Var,
        [b, t, num_heads]: [usize; 3],
        weight: ParamId,
        bias: Option<ParamId>,
        norm: Option<ParamId>,
    ) -> Result<Var> {
        let mut y = tape.linear(x, weight)?;
        if let Some(bias) = bias {
            y = tape.bias(y, bias)?;
        }
        if let (Some(norm), QkNorm::AllHeads) = (norm, self.qk_norm) {
            y = tape.rms_norm(&y, norm, self.norm_epsilon)?;
        }
        y = tape.reshape(&y, &[b, t, num_heads, self.head_dim])?;
        match (norm, self.qk_norm) {
            (Some(norm), QkNorm::PerHead) => tape.rms_norm(&y, norm, self.norm_epsilon),
            _ => Ok(y),
        }
    }
}
