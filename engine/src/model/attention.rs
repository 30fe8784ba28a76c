//! Grouped-query self-attention with rotary positions, optional QK-norm and an optional window.

use std::sync::Arc;

use wattle_kernels::ops::attention::Mask;
use wattle_kernels::ops::rope::RopeTable;
use wattle_router::Result;

use crate::autograd::{Tape, Var};
use crate::model::cache::LayerCache;
use crate::model::config::ModelConfig;
use crate::model::decoder::Builder;
use crate::model::{Init, ParamId};

/// One attention layer: x `[b, t, d]` -> `[b, t, d]`.
#[derive(Debug)]
pub struct Attention {
    query: ParamId,
    key: ParamId,
    value: ParamId,
    output: ParamId,
    /// Weights of the query and key norms, when QK-norm is on.
    qk_norm: Option<[ParamId; 2]>,
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
        let qk_norm = if config.qk_norm {
            let query_norm = build.add(&format!("{name}.query_norm"), &[head_dim], Init::Ones)?;
            Some([query_norm, build.add(&format!("{name}.key_norm"), &[head_dim], Init::Ones)?])
        } else {
            None
        };
        Ok(Attention {
            query: build.add(&format!("{name}.query"), &[query_dim, d], build.input_init())?,
            key: build.add(&format!("{name}.key"), &[kv_dim, d], build.input_init())?,
            value: build.add(&format!("{name}.value"), &[kv_dim, d], build.input_init())?,
            output: build.add(&format!("{name}.output"), &[d, query_dim], build.output_init())?,
            qk_norm,
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
        let query = self.heads(tape, x_btd, self.query, [b, t, self.num_heads, self.head_dim])?;
        let key = self.heads(tape, x_btd, self.key, [b, t, self.num_kv_heads, self.head_dim])?;
        let value = self.heads(tape, x_btd, self.value, [b, t, self.num_kv_heads, self.head_dim])?;
        let (query, key) = match self.qk_norm {
            Some([query_norm, key_norm]) => (
                tape.rms_norm(&query, query_norm, self.norm_epsilon)?,
                tape.rms_norm(&key, key_norm, self.norm_epsilon)?,
            ),
            None => (query, key),
        };
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

    fn heads(&self, tape: &mut Tape, x: &Var, weight: ParamId, shape: [usize; 4]) -> Result<Var> {
        let y = tape.linear(x, weight)?;
        tape.reshape(&y, &shape)
    }
}
