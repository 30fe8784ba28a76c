//! What two runs must agree on: the numbers of each step and the bytes of the checkpoint at the end.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::process::checkpoint_steps;

/// Keys of metrics.jsonl that depend on the machine and the moment.
const OF_THE_MOMENT: [&str; 10] = [
    "time",
    "tokens_per_second",
    "mfu",
    "phases",
    "phase_joules",
    "joules",
    "joules_per_token",
    "watts",
    "grams_co2e",
    "grams_co2e_total",
];

/// Everything about a finished run that its configuration and data decide.
pub struct Outcome {
    /// One object a step, without the keys that depend on the moment.
    pub metrics: Vec<Value>,
    /// `step`, `tokens`, `next_sample`, `nonfinite_steps`, `seed` and the tokens per expert.
    pub progress: Value,
    /// The file of weights, moments and router biases.
    pub tensors: Vec<u8>,
}

impl Outcome {
    /// Reads the metrics and the newest checkpoint of a run.
    pub fn of(run: &Path) -> Self {
        let text = fs::read_to_string(run.join("metrics.jsonl")).expect("the run has metrics");
        let checkpoint = newest_checkpoint(run);
        Outcome {
            metrics: text.lines().map(of_all_time).collect(),
            progress: progress(&checkpoint),
            tensors: fs::read(checkpoint.join("rank-0.safetensors")).expect("a checkpoint has tensors"),
        }
    }

    /// Asserts that `other` came to the same bits over the same steps, each once.
    ///
    /// # Panics
    /// When it did not.
    pub fn assert_same(&self, other: &Outcome) {
        for (ours, theirs) in self.metrics.iter().zip(&other.metrics) {
            assert_eq!(ours, theirs);
        }
        assert_eq!(self.metrics.len(), other.metrics.len(), "as many steps are told of");
        let steps = (1..=self.metrics.len() as u64).map(Value::from);
        assert!(steps.eq(self.metrics.iter().map(|step| step["step"].clone())), "each step is told of once");
        assert_eq!(self.progress, other.progress);
        assert!(self.tensors == other.tensors, "the tensors differ");
    }
}

/// The newest checkpoint's directory.
pub fn newest_checkpoint(run: &Path) -> PathBuf {
    let step = *checkpoint_steps(run).last().expect("the run has a checkpoint");
    checkpoint(run, step)
}

/// The directory of the checkpoint of a step.
pub fn checkpoint(run: &Path, step: u64) -> PathBuf {
    run.join(format!("checkpoints/step-{step:08}"))
}

/// A checkpoint's position in the run.
pub fn progress(checkpoint: &Path) -> Value {
    let text = fs::read(checkpoint.join("manifest.json")).expect("a checkpoint has a manifest");
    let manifest: Value = serde_json::from_slice(&text).expect("a manifest is JSON");
    let mut progress = serde_json::Map::new();
    for key in ["step", "tokens", "next_sample", "nonfinite_steps", "seed"] {
        progress.insert(key.to_owned(), manifest[key].clone());
    }
    progress.insert("expert_tokens".to_owned(), manifest["extra"]["expert_tokens"].clone());
    progress.into()
}

fn of_all_time(line: &str) -> Value {
    let mut object: serde_json::Map<String, Value> =
        serde_json::from_str(line).expect("every line is an object");
    for key in OF_THE_MOMENT {
        assert!(object.remove(key).is_some(), "{key} is missing in {line}");
    }
    object.into()
}
