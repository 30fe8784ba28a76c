//! The decoder: embedding, blocks of attention and feed-forward or experts, final norm, output projection.

use std::sync::Arc;

use wattle_kernels::ops::attention::Mask;
use wattle_kernels::ops::matmul;
use wattle_kernels::{DType, Tensor};
use wattle_router::Result;

use crate::autograd::{Phase, Tape, Var};
use crate::model::config::{ModelConfig, MoeConfig};
use crate::model::rope;
use crate::model::{Attention, FeedForward, Init, KvCache, MoeLayer, ParamId, ParameterStore, RoutingState};

/// A decoder-only transformer. It holds ids; the weights are in the store it was built with.
#[derive(Debug)]
pub struct Decoder {
    embedding: ParamId,
    blocks: Vec<Block>,
    final_norm: ParamId,
    /// The output projection when it is not the embedding table.
    head: Option<ParamId>,
    norm_epsilon: f32,
    compute: DType,
    num_kv_heads: usize,
    head_dim: usize,
}

#[derive(Debug)]
struct Block {
    attention_norm: ParamId,
    attention: Attention,
    feed_forward_norm: ParamId,
    feed_forward: Mixer,
}

/// What stands in the feed-forward place of a block.
#[derive(Debug)]
enum Mixer {
    Dense(FeedForward),
    Sparse(MoeLayer),
}

/// What one forward pass is given beside the tokens.
#[derive(Debug, Default)]
pub struct Pass<'a> {
    /// Scale of the auxiliary losses in the total: 1 / micro-batches of the step.
    pub auxiliary_scale: f32,
    /// Keys and values of earlier tokens, when generating.
    pub cache: Option<&'a mut KvCache>,
}

/// Adds parameters to a store with what all layers share.
pub(super) struct Builder<'a> {
    store: &'a mut ParameterStore,
    compute: DType,
    seed: Option<u64>,
    init_std: f64,
    num_layers: usize,
}

impl Builder<'_> {
    pub(super) fn add(&mut self, name: &str, shape: &[usize], init: Init) -> Result<ParamId> {
        Ok(self.store.add(&format!("model.{name}"), shape, init, self.compute, self.seed)?)
    }

    /// A matrix that computes in f32 whatever the precision: the router.
    pub(super) fn add_f32(&mut self, name: &str, shape: &[usize], init: Init) -> Result<ParamId> {
        Ok(self.store.add(&format!("model.{name}"), shape, init, DType::F32, self.seed)?)
    }

    /// For projections out of the residual stream.
    pub(super) fn input_init(&self) -> Init {
        Init::TruncatedNormal(self.init_std as f32)
    }

    /// For projections into the residual stream: scaled so that its variance does not grow with depth.
    pub(super) fn output_init(&self) -> Init {
        Init::TruncatedNormal((self.init_std / (2.0 * self.num_layers as f64).sqrt()) as f32)
    }
}

impl Decoder {
    /// Adds the model's parameters to `store`; with `seed` none they stay unspecified, for a loader to fill.
    ///
    /// `max_positions` bounds the sequences the model will see.
    ///
    /// # Errors
    /// Out of memory, or a shape the kernels refuse.
    pub fn new(
        store: &mut ParameterStore,
        config: &ModelConfig,
        moe: Option<&MoeConfig>,
        vocab_size: usize,
        max_positions: usize,
        compute: DType,
        seed: Option<u64>,
    ) -> Result<Self> {
        let (d, num_layers) = (config.d_model, config.num_layers);
        let mut build = Builder { store, compute, seed, init_std: config.init_std, num_layers };
        let embedding = build.add("embedding", &[vocab_size, d], build.input_init())?;
        let rope = Arc::new(rope::table(config, max_positions)?);
        let mut blocks = Vec::with_capacity(num_layers);
        for layer in 0..num_layers {
            let name = format!("layers.{layer}");
            let mask = Mask {
                causal: true,
                window: Some(config.attention_window(layer)).filter(|&window| window > 0),
                num_global_tokens: config.num_global_tokens,
            };
            let attention_norm = build.add(&format!("{name}.attention_norm"), &[d], Init::Ones)?;
            let attention = Attention::new(&mut build, &format!("{name}.attention"), config, mask, &rope)?;
            let feed_forward_norm = build.add(&format!("{name}.feed_forward_norm"), &[d], Init::Ones)?;
            let feed_forward = match moe {
                Some(moe) if layer >= moe.num_leading_dense_layers => {
                    Mixer::Sparse(MoeLayer::new(&mut build, &format!("{name}.moe"), d, moe)?)
                }
                _ => {
                    let name = format!("{name}.feed_forward");
                    Mixer::Dense(FeedForward::new(&mut build, &name, d, config.ffn_size.unwrap_or(0))?)
                }
            };
            blocks.push(Block { attention_norm, attention, feed_forward_norm, feed_forward });
        }
        let final_norm = build.add("final_norm", &[d], Init::Ones)?;
        let head = match config.tied_embedding {
            true => None,
            false => Some(build.add("head", &[vocab_size, d], build.input_init())?),
        };
        Ok(Decoder {
            embedding,
            blocks,
            final_norm,
            head,
            norm_epsilon: config.norm_epsilon as f32,
            compute,
            num_kv_heads: config.num_kv_heads(),
            head_dim: config.head_dim(),
        })
    }

    /// Token ids `[b, t]` -> normed hidden states `[b, t, d]`. `routing` holds one state per sparse layer.
    ///
    /// # Errors
    /// Any kernel error, such as a token id outside the vocabulary.
    pub fn forward(
        &self,
        tape: &mut Tape,
        ids_bt: &Tensor,
        routing: &mut [RoutingState],
        mut pass: Pass,
    ) -> Result<Var> {
        let start_position = pass.cache.as_ref().map_or(0, |cache| cache.len());
        tape.enter(Phase::Head);
        let mut x = tape.embedding(ids_bt, self.embedding)?;
        let mut routing = routing.iter_mut();
        for (layer, block) in self.blocks.iter().enumerate() {
            tape.enter(Phase::Attention);
            let normed = tape.rms_norm(&x, block.attention_norm, self.norm_epsilon)?;
            let cache = pass.cache.as_mut().map(|cache| &mut cache.layers[layer]);
            let y = block.attention.forward(tape, &normed, cache, start_position)?;
            x = tape.add(&x, &y)?;
            let y = match &block.feed_forward {
                Mixer::Dense(dense) => {
                    tape.enter(Phase::FeedForward);
                    let normed = tape.rms_norm(&x, block.feed_forward_norm, self.norm_epsilon)?;
                    dense.forward(tape, &normed)?
                }
                Mixer::Sparse(sparse) => {
                    tape.enter(Phase::Router);
                    let normed = tape.rms_norm(&x, block.feed_forward_norm, self.norm_epsilon)?;
                    let Some(state) = routing.next() else {
                        unreachable!("new_routing makes a state for every sparse layer")
                    };
                    sparse.forward(tape, &normed, state, pass.auxiliary_scale)?
                }
            };
            x = tape.add(&x, &y)?;
        }
        tape.enter(Phase::Head);
        tape.rms_norm(&x, self.final_norm, self.norm_epsilon)
    }

    /// Adds `scale` · Σ cross-entropy of the next tokens to the tape's losses; returns each token's, in nats.
    ///
    /// # Errors
    /// Any kernel error.
    pub fn loss(&self, tape: &mut Tape, hidden_btd: &Var, targets_bt: &Tensor, scale: f32) -> Result<Tensor> {
        tape.cross_entropy(hidden_btd, self.head.unwrap_or(self.embedding), targets_bt, scale)
    }

    /// Hidden states `[b, t, d]` -> logits `[b, t, v]`, f32. The whole vocabulary for every row: for few rows.
    ///
    /// # Errors
    /// Any kernel error.
    pub fn logits(&self, store: &ParameterStore, hidden_btd: &Tensor) -> Result<Tensor> {
        Ok(matmul::forward(hidden_btd, store.compute(self.head.unwrap_or(self.embedding)), DType::F32)?)
    }

    /// A fresh routing state for every sparse layer.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new_routing(&self) -> Result<Vec<RoutingState>> {
        self.blocks
            .iter()
            .filter_map(|block| match &block.feed_forward {
                Mixer::Sparse(sparse) => Some(sparse.new_state()),
                Mixer::Dense(_) => None,
            })
            .collect()
    }

    /// An empty cache for one sequence of up to `capacity` tokens.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new_cache(&self, capacity: usize) -> Result<KvCache> {
        Ok(KvCache::new(self.blocks.len(), capacity, self.num_kv_heads, self.head_dim, self.compute)?)
    }
}
