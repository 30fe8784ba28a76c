//! One step's numbers, as `metrics.jsonl` and every other observer get them.

use serde::{Deserialize, Serialize};

/// One object of `metrics.jsonl`. Units: seconds, joules, watts, grams, nats per token.
///
/// Everything but `time`, `tokens_per_second`, `mfu`, `phases` and the energy and carbon keys depends on the
/// configuration and the data alone: two runs of one seed agree on it to the bit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Optimizer steps so far, this one included.
    pub step: u64,
    /// Tokens trained on so far.
    pub tokens: u64,
    /// Seconds of training so far, over all parts of an interrupted run.
    pub time: f64,
    /// What the gradient descends: cross-entropy, balance and z-loss.
    pub loss: f64,
    /// Cross-entropy.
    pub ce_loss: f64,
    /// Load-balancing loss of all layers, with its coefficient.
    pub balance_loss: f64,
    /// Router z-loss of all layers, with its coefficient.
    pub z_loss: f64,
    /// Euclidean norm of the gradient before clipping; null when not finite.
    pub grad_norm: f64,
    /// Learning rate of this step.
    pub lr: f64,
    /// Tokens in this step.
    pub batch_tokens: u64,
    /// Mean number of active routed experts per token; 0 for a dense model.
    pub k_mean: f64,
    /// Coefficient of variation of tokens over experts, mean over layers.
    pub expert_load_cv: f64,
    /// Token-expert pairs beyond capacity, all layers.
    pub dropped_tokens: u64,
    /// Whether the step was skipped because its loss or gradient was not finite.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
    /// Speed of this step.
    pub tokens_per_second: f64,
    /// Model FLOPs per second over the processor's measured peak.
    pub mfu: f64,
    /// Energy of this step.
    pub joules: Option<f64>,
    /// Energy per token of this step.
    pub joules_per_token: Option<f64>,
    /// Where the joules come from.
    pub energy_source: String,
    /// Mean power over this step.
    pub watts: Option<f64>,
    /// Carbon of this step.
    pub grams_co2e: Option<f64>,
    /// Carbon of the run so far, set-up, evaluation and checkpoints included.
    pub grams_co2e_total: f64,
    /// Seconds per phase of this step.
    pub phases: serde_json::Map<String, serde_json::Value>,
    /// Joules per phase of this step; with `other` they add up to `joules`. Empty when the energy is unknown.
    #[serde(default)]
    pub phase_joules: serde_json::Map<String, serde_json::Value>,
    /// Held-out loss, on steps that evaluate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
}
