//! `[checkpoint]`: how often a run is made durable.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::Problem;
use crate::config::problem::at_least_one;

/// How often the run is made durable. A checkpoint is always written at the end and when the run is told to
/// stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Steps between two checkpoints; 0 writes one at the end of the run only.
    pub every_steps: usize,
    /// Number of checkpoints kept, the newest; older ones are deleted after a new one is durable.
    pub keep: usize,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        CheckpointConfig { every_steps: 200, keep: 3 }
    }
}

impl CheckpointConfig {
    /// Everything that is wrong in this section.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        at_least_one(&mut problems, "checkpoint.keep", self.keep);
        problems
    }
}
