//! What a checkpoint holds, without knowing any model: named tensors, the position in the run, the configuration.

use serde::{Deserialize, Serialize};
use wattle_kernels::Tensor;

/// Everything that a run needs to go on as if it had never stopped.
#[derive(Clone, Debug)]
pub struct State<T = Vec<NamedTensor>> {
    /// Weights, optimizer state and router state. Names are unique, and their order comes back on load. They are saved
    /// from wherever they lie, and loaded into memory.
    pub tensors: T,
    /// How far the run is.
    pub progress: Progress,
    /// The resolved configuration, as in the run's `config.toml`.
    pub config_toml: String,
    /// Small further state by name (controller, ledger position). JSON: a float must be finite and comes back exact.
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// A tensor under its name, such as `model.layers.0.moe.gate_up` or
/// `optimizer.first_moment.model.layers.0.moe.gate_up`.
#[derive(Clone, Debug)]
pub struct NamedTensor {
    /// Unique in its file.
    pub name: String,
    /// The values, on the host.
    pub tensor: Tensor,
}

/// The position of a run. With the seed it decides all random numbers and all data that follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimizer steps done.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Global index of the first sample not yet trained on.
    pub next_sample: u64,
    /// Steps skipped because a gradient was not finite.
    pub nonfinite_steps: u64,
    /// The run's seed.
    pub seed: u64,
}
