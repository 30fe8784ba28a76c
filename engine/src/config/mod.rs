//! The configuration of a run: one TOML file, `--set` overrides, and every problem at once.

pub mod device;
pub mod error;
mod load;
pub mod problem;
pub mod resolved;
pub mod schema;
#[cfg(test)]
mod shipped;
pub mod telemetry;
#[cfg(test)]
mod tests;
pub mod token_count;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wattle_energy::{CarbonConfig, EnergyConfig};

pub use device::{ComputePrecision, DeviceConfig, DeviceKind, PrecisionConfig};
pub use error::{ConfigError, PlacedProblem};
pub use problem::Problem;
pub use resolved::{Origin, Resolved};
pub use schema::schema;
pub use telemetry::TelemetryConfig;
pub use token_count::TokenCount;

use crate::checkpoint::config::CheckpointConfig;
use crate::data::config::{DataConfig, TokenizerConfig};
use crate::model::config::{ModelConfig, MoeConfig};
use crate::optim::config::{OptimizerConfig, ScheduleConfig, ScheduleKind};
use crate::train::config::{EvalConfig, RunConfig};

/// The configuration of a training run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["run", "model"]))]
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
    /// The text to learn from.
    pub data: DataConfig,
    /// How text becomes token ids.
    pub tokenizer: TokenizerConfig,
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
    /// How joules are counted.
    pub energy: EnergyConfig,
    /// How joules become grams of CO2-equivalent.
    pub carbon: CarbonConfig,
    /// What the run says about itself.
    pub telemetry: TelemetryConfig,
}

impl Config {
    /// Everything that is wrong in the sections and between them.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = self.run.validate();
        problems.extend(self.device.validate());
        problems.extend(self.model.validate());
        problems.extend(self.moe.iter().flat_map(|moe| moe.validate(&self.model)));
        problems.extend(self.data.validate());
        problems.extend(self.tokenizer.validate());
        problems.extend(self.optimizer.validate());
        problems.extend(self.schedule.validate(self.run.max_tokens));
        problems.extend(self.checkpoint.validate());
        problems.extend(self.energy.validate().into_iter().map(Problem::from));
        problems.extend(self.carbon.validate().into_iter().map(Problem::from));
        problems.extend(self.telemetry.validate());
        self.validate_dense_layers(&mut problems);
        self.validate_budget(&mut problems);
        problems
    }

    fn validate_dense_layers(&self, problems: &mut Vec<Problem>) {
        let has_dense_layers = self.moe.as_ref().is_none_or(|moe| moe.num_leading_dense_layers > 0);
        if has_dense_layers && self.model.ffn_size.is_none() {
            let why = match self.moe {
                None => "without a section [moe] every layer is dense",
                Some(_) => "moe.num_leading_dense_layers is not 0",
            };
            problems.push(Problem::new(
                "model.ffn_size",
                format!("is missing, expected the hidden size of the dense layers: {why}"),
            ));
        }
    }

    fn validate_budget(&self, problems: &mut Vec<Problem>) {
        let (sequences, length) = (self.optimizer.batch_sequences, self.data.sequence_length);
        let batch = TokenCount::new((sequences as u64).saturating_mul(length as u64));
        let max_tokens = self.run.max_tokens;
        if max_tokens > TokenCount::ZERO && max_tokens < batch {
            problems.push(Problem::new(
                "run.max_tokens",
                format!(
                    "is {max_tokens}, expected at least the {batch} of one step: \
                     optimizer.batch_sequences = {sequences} times data.sequence_length = {length}"
                ),
            ));
        }
    }

    /// Fills in the values that follow from others, so that the run directory keeps what was run.
    fn fill_derived(&mut self) {
        self.model.num_kv_heads = Some(self.model.num_kv_heads());
        self.model.head_dim = Some(self.model.head_dim());
        self.optimizer.micro_batch_sequences = Some(self.optimizer.micro_batch_sequences());
        if self.schedule.kind == ScheduleKind::Wsd {
            self.schedule.decay_tokens = self.schedule.decay_tokens(self.run.max_tokens);
        }
    }
}
