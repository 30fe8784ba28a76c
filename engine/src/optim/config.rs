//! `[optimizer]` and `[schedule]`: AdamW, the batch it steps on, and its learning rate over the run.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::problem::{at_least_one, in_range};
use crate::config::{Problem, TokenCount};

/// AdamW and the batch of one optimizer step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Peak learning rate; `[schedule]` shapes it over the run.
    pub learning_rate: f64,
    /// Decay of the first moment per step.
    pub beta1: f64,
    /// Decay of the second moment per step.
    pub beta2: f64,
    /// Added to the root of the second moment before the division.
    pub epsilon: f64,
    /// Decoupled weight decay, multiplied by the learning rate; only matrices decay.
    pub weight_decay: f64,
    /// Largest global L2 norm of the gradient; a longer one is scaled down to it; 0 switches clipping off.
    pub clip_norm: f64,
    /// Sequences per optimizer step.
    pub batch_sequences: usize,
    /// Sequences that go through the model at once; a step accumulates the gradients of batch_sequences /
    /// micro_batch_sequences of them. Smaller needs less memory. Must divide batch_sequences, which is the
    /// default.
    #[schemars(with = "usize")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch_sequences: Option<usize>,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        OptimizerConfig {
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            clip_norm: 1.0,
            batch_sequences: 16,
            micro_batch_sequences: None,
        }
    }
}

impl OptimizerConfig {
    /// Sequences that go through the model at once.
    pub fn micro_batch_sequences(&self) -> usize {
        self.micro_batch_sequences.unwrap_or(self.batch_sequences)
    }

    /// Everything that is wrong in this section.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let list = &mut problems;
        in_range(list, "optimizer.learning_rate", self.learning_rate, |x| x > 0.0, "above 0, such as 1e-3");
        in_range(list, "optimizer.beta1", self.beta1, |x| (0.0..1.0).contains(&x), "at least 0 and below 1");
        in_range(list, "optimizer.beta2", self.beta2, |x| (0.0..1.0).contains(&x), "at least 0 and below 1");
        in_range(list, "optimizer.epsilon", self.epsilon, |x| x > 0.0, "above 0, such as 1e-8");
        in_range(list, "optimizer.weight_decay", self.weight_decay, |x| x >= 0.0, "0 or more");
        in_range(list, "optimizer.clip_norm", self.clip_norm, |x| x >= 0.0, "0 (off) or more");
        at_least_one(list, "optimizer.batch_sequences", self.batch_sequences);
        let micro = self.micro_batch_sequences();
        if self.batch_sequences > 0 && (micro == 0 || !self.batch_sequences.is_multiple_of(micro)) {
            list.push(Problem::new(
                "optimizer.micro_batch_sequences",
                format!(
                    "is {micro}, expected a divisor of optimizer.batch_sequences = {}",
                    self.batch_sequences
                ),
            ));
        }
        problems
    }
}

/// The learning rate over the run, as a fraction of its peak `optimizer.learning_rate`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleConfig {
    /// The shape of the learning rate after the warm-up.
    pub kind: ScheduleKind,
    /// Tokens over which the learning rate rises linearly from 0 to its peak.
    pub warmup_tokens: TokenCount,
    /// Tokens of the decay at the end of the run, for wsd only; 0 takes a fifth of run.max_tokens.
    pub decay_tokens: TokenCount,
    /// Learning rate at the end of the run as a fraction of its peak, for wsd, cosine and linear.
    pub final_fraction: f64,
}

/// The shape of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Warm-up, stable, decay: constant until a linear decay at the end. The stable part can be prolonged
    /// without a new run.
    #[default]
    Wsd,
    /// Half a cosine from the peak down to the final fraction.
    Cosine,
    /// Constant to the end.
    Constant,
    /// A straight line from the peak down to the final fraction.
    Linear,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        ScheduleConfig {
            kind: ScheduleKind::default(),
            warmup_tokens: TokenCount::ZERO,
            decay_tokens: TokenCount::ZERO,
            final_fraction: 0.1,
        }
    }
}

impl ScheduleConfig {
    /// Everything that is wrong in this section for a run of `max_tokens`.
    pub fn validate(&self, max_tokens: TokenCount) -> Vec<Problem> {
        let mut problems = Vec::new();
        in_range(
            &mut problems,
            "schedule.final_fraction",
            self.final_fraction,
            |x| (0.0..=1.0).contains(&x),
            "a fraction of the peak, from 0 to 1",
        );
        let (warmup, max) = (self.warmup_tokens.get(), max_tokens.get());
        if max == 0 {
            // That there is no budget is a problem of run.max_tokens.
            return problems;
        }
        if warmup > max {
            problems.push(Problem::new(
                "schedule.warmup_tokens",
                format!("is {}, expected at most run.max_tokens = {max_tokens}", self.warmup_tokens),
            ));
        } else if self.kind == ScheduleKind::Wsd && self.decay_tokens(max_tokens).get() > max - warmup {
            problems.push(Problem::new(
                "schedule.decay_tokens",
                format!(
                    "is {}, expected at most {}: warm-up and decay must fit into run.max_tokens = {max_tokens}",
                    self.decay_tokens(max_tokens),
                    TokenCount::new(max - warmup),
                ),
            ));
        }
        problems
    }

    /// Tokens of the final decay of a `wsd` run of `max_tokens`.
    pub fn decay_tokens(&self, max_tokens: TokenCount) -> TokenCount {
        match self.decay_tokens {
            TokenCount::ZERO => TokenCount::new(max_tokens.get() / 5),
            tokens => tokens,
        }
    }
}
