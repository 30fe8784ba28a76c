//! The configuration of a run: one TOML file, `--set` overrides, and every problem at once.

pub mod device;
pub mod problem;
pub mod telemetry;
pub mod token_count;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use device::{ComputePrecision, DeviceConfig, DeviceKind, PrecisionConfig};
pub use problem::Problem;
pub use telemetry::TelemetryConfig;
pub use token_count::TokenCount;

use crate::checkpoint::config::CheckpointConfig;
use crate::model::config::{ModelConfig, MoeConfig};
use crate::optim::config::{OptimizerConfig, ScheduleConfig};
use crate::train::config::{EvalConfig, RunConfig};

/// The configuration of a training run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The run's name, seed, place and length.
    pub run: RunConfig,
    /// Where the run computes.
    pub device: DeviceConfig,
    /// The transformer.
    pub model: ModelConfig,
    /// Mixture-of-experts layers; without this section the model is dense.
    #[schemars(with = "MoeConfig")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moe: Option<MoeConfig>,
    /// AdamW and the batch.
    pub optimizer: OptimizerConfig,
    /// The learning rate over the run.
    pub schedule: ScheduleConfig,
    /// The number format of computation.
    pub precision: PrecisionConfig,
    /// How often the run is made durable.
    pub checkpoint: CheckpointConfig,
    /// When held-out data is looked at.
    pub eval: EvalConfig,
    /// What the run says about itself.
    pub telemetry: TelemetryConfig,
}
