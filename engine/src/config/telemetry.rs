//! `[telemetry]`: what a run says about itself while it goes on.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::problem::{Problem, at_least_one};

/// What the run says about itself. `metrics.jsonl` always gets one object a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// Steps between two log lines when standard error is no terminal; on a terminal there is a progress bar
    /// instead.
    pub log_every_steps: usize,
    /// Whether the run directory gets an event file for TensorBoard.
    pub tensorboard: bool,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        TelemetryConfig { log_every_steps: 10, tensorboard: true }
    }
}

impl TelemetryConfig {
    /// Everything that is wrong in this section.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        at_least_one(&mut problems, "telemetry.log_every_steps", self.log_every_steps);
        problems
    }
}
