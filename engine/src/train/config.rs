//! `[run]` and `[eval]`: the frame of a run and when it looks at held-out data.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::problem::at_least_one;
use crate::config::{Problem, TokenCount};

/// The frame of a run: its name, seed, place and length.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["max_tokens"]))]
pub struct RunConfig {
    /// Name of the run, the first part of its directory's name: letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Seed of everything random: initial weights, shuffling, sampling. The same seed gives the same run.
    pub seed: u64,
    /// Directory in which the run's own directory `<name>-<start time>` is made.
    pub directory: PathBuf,
    /// Training budget in tokens: a whole number or text such as `"20M"`. The run ends with the step that
    /// reaches it.
    pub max_tokens: TokenCount,
    /// Prompt that the trained model continues when the run ends.
    pub sample_prompt: String,
    /// Number of tokens of that continuation; 0 makes none.
    pub sample_tokens: usize,
    /// Consecutive steps whose loss or gradient is not finite before the run stops with an error. Such steps
    /// leave the weights unchanged.
    pub max_nonfinite_steps: usize,
}

impl Default for RunConfig {
    fn default() -> Self {
        RunConfig {
            name: "run".to_owned(),
            seed: 0,
            directory: PathBuf::from("runs"),
            max_tokens: TokenCount::ZERO,
            sample_prompt: String::new(),
            sample_tokens: 0,
            max_nonfinite_steps: 5,
        }
    }
}

impl RunConfig {
    /// Everything that is wrong in this section alone.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.name.is_empty() || self.name.starts_with('.') || !self.name.chars().all(is_plain) {
            problems.push(Problem::new(
                "run.name",
                format!(
                    "is {:?}, expected letters, digits, '-', '_' and '.', the first no '.': it names a directory",
                    self.name
                ),
            ));
        }
        if self.directory.as_os_str().is_empty() {
            problems.push(Problem::new("run.directory", "is empty, expected a directory such as \"runs\""));
        }
        if self.max_tokens == TokenCount::ZERO {
            problems.push(Problem::new(
                "run.max_tokens",
                "is 0, expected the training budget in tokens such as \"20M\"",
            ));
        }
        at_least_one(&mut problems, "run.max_nonfinite_steps", self.max_nonfinite_steps);
        problems
    }
}

/// When and on how much held-out data the model is evaluated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// Steps between two evaluations; 0 evaluates at the end of the run only.
    pub every_steps: usize,
    /// Held-out tokens per evaluation, always the same ones; 0 takes all of them.
    pub max_tokens: TokenCount,
}

impl Default for EvalConfig {
    fn default() -> Self {
        EvalConfig { every_steps: 100, max_tokens: TokenCount::ZERO }
    }
}
