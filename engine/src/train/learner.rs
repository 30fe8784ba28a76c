//! A model that learns: one optimizer step from micro-batches, and the loss on held-out batches.

use std::time::Duration;

use wattle_kernels::DType;
use wattle_kernels::ops::adamw::State;
use wattle_router::{LoadAccumulator, Result, RoutingStats};

use crate::autograd::{Losses, Phase, PhaseClock, Tape};
use crate::data::Batch;
use crate::model::config::{ModelConfig, MoeConfig};
use crate::model::{Decoder, ParameterStore, Pass, RoutingState};
use crate::optim::{self, config::OptimizerConfig};

/// A decoder with its weights, routing state and optimizer.
#[derive(Debug)]
pub struct Learner {
    /// The model.
    pub decoder: Decoder,
    /// Its weights, gradients and moments.
    pub store: ParameterStore,
    /// One state per sparse layer.
    pub routing: Vec<RoutingState>,
    /// How weights move.
    pub optimizer: OptimizerConfig,
    /// What AdamW hands on from step to step: the updates applied so far, for its bias correction.
    pub updates: State,
}

/// What one optimizer step came to.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// The losses, averaged over the step's tokens.
    pub losses: Losses,
    /// Gradient norm before clipping; NaN when the loss was already not finite.
    pub gradient_norm: f64,
    /// False when a non-finite loss or gradient made the step leave the weights alone.
    pub applied: bool,
    /// Tokens that were predicted.
    pub num_tokens: u64,
    /// Routing of each sparse layer over the whole step.
    pub routing: Vec<RoutingStats>,
    /// Assignments per expert of each sparse layer over the whole step.
    pub tokens_per_expert: Vec<Vec<u64>>,
    /// As `tokens_per_expert`, without those dropped for lack of capacity.
    pub computed_per_expert: Vec<Vec<u64>>,
    /// Time per phase.
    pub phases: [(Phase, Duration); Phase::ALL.len()],
}

impl StepReport {
    fn new(
        (applied, gradient_norm): (bool, f64),
        losses: Losses,
        num_tokens: u64,
        loads: &[LoadAccumulator],
        clock: PhaseClock,
    ) -> Result<Self> {
        let loads = loads.iter().map(LoadAccumulator::read).collect::<Result<Vec<_>>>()?;
        let routing = loads.iter().map(RoutingStats::new).collect();
        let per_expert = loads.into_iter().map(|load| (load.tokens_per_expert, load.computed_per_expert));
        let (tokens_per_expert, computed_per_expert) = per_expert.unzip();
        Ok(StepReport {
            losses,
            gradient_norm,
            applied,
            num_tokens,
            routing,
            tokens_per_expert,
            computed_per_expert,
            phases: clock.split(),
        })
    }
}

impl Learner {
    /// Builds a model; with `seed` none its weights stay unspecified, for a loader to fill.
    ///
    /// # Errors
    /// Out of memory, or a shape the kernels refuse.
    pub fn new(
        model: &ModelConfig,
        moe: Option<&MoeConfig>,
        vocab_size: usize,
        max_positions: usize,
        compute: DType,
        optimizer: OptimizerConfig,
        seed: Option<u64>,
    ) -> Result<Self> {
        let mut store = ParameterStore::default();
        let decoder = Decoder::new(&mut store, model, moe, vocab_size, max_positions, compute, seed)?;
        let routing = decoder.new_routing()?;
        Ok(Learner { decoder, store, routing, optimizer, updates: State::new(0) })
    }

    /// Runs one step over the micro-batches that `next` gives, and moves the weights.
    ///
    /// # Errors
    /// Any kernel error; the step is then incomplete.
    pub fn step(
        &mut self,
        num_micro_batches: usize,
        step_tokens: u64,
        learning_rate: f64,
        mut next: impl FnMut(usize) -> Batch,
    ) -> Result<StepReport> {
        let mut clock = PhaseClock::start(Phase::Optimizer);
        self.store.zero_gradients()?;
        let mut losses = Losses::default();
        let auxiliary_scale = 1.0 / num_micro_batches as f32;
        for micro_batch in 0..num_micro_batches {
            clock.enter(Phase::Data);
            let batch = next(micro_batch);
            let (ids, targets) = batch.tensors()?;
            let mut tape = Tape::recording(&mut self.store, clock);
            let pass = Pass { auxiliary_scale, cache: None };
            let hidden = self.decoder.forward(&mut tape, &ids, &mut self.routing, pass)?;
            self.decoder.loss(&mut tape, &hidden, &targets, (step_tokens as f32).recip())?;
            drop(hidden);
            let part = tape.losses()?;
            losses.cross_entropy += part.cross_entropy;
            losses.balance += part.balance;
            losses.z += part.z;
            if !part.total().is_finite() {
                let clock = tape.into_clock();
                return self.skipped(losses, f64::NAN, step_tokens, clock);
            }
            clock = tape.backward()?;
        }
        clock.enter(Phase::Optimizer);
        let outcome = optim::step(&mut self.store, &self.optimizer, &mut self.updates, learning_rate)?;
        // The first look at what the optimizer decided: on a GPU all work of the step is under way by now.
        let update = outcome.read()?;
        if !update.applied {
            return self.skipped(losses, update.gradient_norm, step_tokens, clock);
        }
        let loads = self.routing.iter_mut().map(RoutingState::end_step).collect::<Result<Vec<_>>>()?;
        let applied = (true, update.gradient_norm);
        StepReport::new(applied, losses, step_tokens, &loads, clock)
    }

    /// A step that leaves the weights and the routers' biases alone.
    fn skipped(
        &mut self,
        losses: Losses,
        gradient_norm: f64,
        num_tokens: u64,
        clock: PhaseClock,
    ) -> Result<StepReport> {
        let loads = self.routing.iter_mut().map(RoutingState::take_load).collect::<Result<Vec<_>>>()?;
        StepReport::new((false, gradient_norm), losses, num_tokens, &loads, clock)
    }

    /// Mean cross-entropy in nats per token over `batches`.
    ///
    /// # Errors
    /// Any kernel error.
    pub fn evaluate(&mut self, batches: impl Iterator<Item = Batch>) -> Result<Evaluation> {
        evaluate(&self.decoder, &mut self.store, &mut self.routing, batches)
    }
}

/// The loss over a set of tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean cross-entropy, nats per token.
    pub loss: f64,
    /// Tokens that were predicted.
    pub num_tokens: u64,
}

/// Mean cross-entropy of a model over `batches`; its routing loads are not counted.
///
/// # Errors
/// Any kernel error.
pub fn evaluate(
    decoder: &Decoder,
    store: &mut ParameterStore,
    routing: &mut [RoutingState],
    batches: impl Iterator<Item = Batch>,
) -> Result<Evaluation> {
    let (mut sum, mut num_tokens) = (0.0, 0);
    for batch in batches {
        let (ids, targets) = batch.tensors()?;
        let mut tape = Tape::forward_only(store);
        let hidden = decoder.forward(&mut tape, &ids, routing, Pass::default())?;
        decoder.loss(&mut tape, &hidden, &targets, 1.0)?;
        sum += tape.losses()?.cross_entropy;
        num_tokens += batch.targets.iter().filter(|&&target| target >= 0).count() as u64;
        routing.iter_mut().try_for_each(|layer| layer.take_load().map(drop))?;
    }
    Ok(Evaluation { loss: sum / (num_tokens.max(1)) as f64, num_tokens })
}

/// Training FLOPs per token: 6 per matrix weight used by a token (head included, look-up not) and 6·d_attn·seq per
/// layer for causal attention.
pub fn flops_per_token(model: &ModelConfig, moe: Option<&MoeConfig>, vocab_size: usize, seq: usize) -> f64 {
    // In floating point from the start: a shape that is too large to build may still be planned.
    let [d, heads, kv_heads, head_dim, layers] =
        [model.d_model, model.num_heads, model.num_kv_heads(), model.head_dim(), model.num_layers]
            .map(|size| size as f64);
    let attention = d * (heads + 2.0 * kv_heads) * head_dim + heads * head_dim * d;
    let num_dense = moe.map_or(layers, |moe| (moe.num_leading_dense_layers as f64).min(layers));
    let dense = 3.0 * d * model.ffn_size.unwrap_or(0) as f64;
    let sparse = moe.map_or(0.0, |moe| {
        let used = (moe.top_k + moe.num_shared_experts) as f64;
        d * moe.num_experts as f64 + 3.0 * d * moe.expert_ffn_size as f64 * used
    });
    let weights =
        layers * attention + num_dense * dense + (layers - num_dense) * sparse + vocab_size as f64 * d;
    6.0 * (weights + layers * heads * head_dim * seq as f64)
}
