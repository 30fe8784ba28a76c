//! `wattle inspect`: how a run went, read from its files.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use crate::checkpoint;
use crate::cli::{exit, print};
use crate::files;
use crate::telemetry::{format, message};
use crate::train::RunDirectory;

/// Flags of `wattle inspect`.
#[derive(Debug, Args)]
#[command(after_help = "Example: wattle inspect runs/quickstart-20261124-120000")]
pub struct Arguments {
    /// A run directory
    run: PathBuf,
    /// How to write it
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Shows the run.
pub fn run(arguments: &Arguments) -> Result<u8> {
    let run = RunDirectory::at(&arguments.run);
    let view = View::read(&run)?;
    match arguments.format {
        Format::Text => print(&view.to_text(&arguments.run))?,
        Format::Json => print(&format!("{}\n", view.to_json()))?,
    }
    Ok(exit::DONE)
}

/// What the files of a run say.
struct View {
    steps: Vec<Map<String, Value>>,
    /// Tokens per expert since the run began, per sparse layer, from the newest checkpoint.
    expert_tokens: Vec<Vec<u64>>,
    checkpoint_step: Option<u64>,
}

impl View {
    fn read(run: &RunDirectory) -> Result<Self> {
        let path = run.metrics();
        let steps = files::read_jsonl(&path).with_context(|| {
            format!("{} is no run directory, or its run has not made a step yet", run.path().display())
        })?;
        let steps = steps.into_iter().filter_map(|value| match value {
            Value::Object(step) => Some(step),
            _ => None,
        });
        let (manifest, rejected) = checkpoint::newest_header(&run.checkpoints())?;
        for rejected in &rejected {
            message(format_args!("checkpoint refused: {}", rejected.reason));
        }
        let expert_tokens = manifest
            .as_ref()
            .and_then(|manifest| manifest.extra.get("expert_tokens"))
            .and_then(|value| serde_json::from_value(value.clone()).ok())
            .unwrap_or_default();
        let checkpoint_step = manifest.map(|manifest| manifest.progress.step);
        Ok(View { steps: steps.collect(), expert_tokens, checkpoint_step })
    }

    fn column(&self, key: &str) -> Vec<f64> {
        self.steps.iter().filter_map(|step| step.get(key)?.as_f64()).collect()
    }

    /// Seconds per phase over all steps, the longest first.
    fn phases(&self) -> Vec<(String, f64)> {
        let mut sums: Vec<(String, f64)> = Vec::new();
        for phases in self.steps.iter().filter_map(|step| step.get("phases")?.as_object()) {
            for (name, seconds) in phases {
                let seconds = seconds.as_f64().unwrap_or(0.0);
                match sums.iter_mut().find(|(known, _)| known == name) {
                    Some((_, sum)) => *sum += seconds,
                    None => sums.push((name.clone(), seconds)),
                }
            }
        }
        sums.sort_by(|a, b| b.1.total_cmp(&a.1));
        sums
    }

    fn num_skipped(&self) -> usize {
        self.steps.iter().filter(|step| step.get("skipped") == Some(&Value::Bool(true))).count()
    }

    fn to_json(&self) -> Value {
        json!({
            "steps": self.steps.len(),
            "skipped_steps": self.num_skipped(),
            "checkpoint_step": self.checkpoint_step,
            "last": self.steps.last(),
            "phase_seconds": self.phases().into_iter().map(|(k, v)| (k, json!(v))).collect::<Map<_, _>>(),
            "expert_tokens": self.expert_tokens,
        })
    }

    fn to_text(&self, path: &Path) -> String {
        let mut out = format!("{}\n", path.display());
        let mut line = |label: &str, text: String| out.push_str(&format!("  {label:<18} {text}\n"));
        let loss = self.column("ce_loss");
        if let (Some(first), Some(last), Some(step)) = (loss.first(), loss.last(), self.steps.last()) {
            let tokens = step.get("tokens").and_then(Value::as_u64).unwrap_or(0);
            line("steps", format!("{} ({} tokens)", self.steps.len(), format::count(tokens)));
            line("loss", format!("{first:.3} -> {last:.3} nats/token  {}", sparkline(&loss)));
        }
        let held_out = self.column("val_loss");
        if let Some(last) = held_out.last() {
            line("held-out loss", format!("{last:.3} nats/token  {}", sparkline(&held_out)));
        }
        if self.num_skipped() > 0 {
            line("skipped steps", self.num_skipped().to_string());
        }
        if let Some(step) = self.checkpoint_step {
            line("newest checkpoint", format!("step {step}"));
        }
        let cv = self.column("expert_load_cv");
        if !self.expert_tokens.is_empty() {
            line("expert load CV", format!("{:.3}  {}", cv.last().copied().unwrap_or(0.0), sparkline(&cv)));
            let dropped: f64 = self.column("dropped_tokens").iter().sum();
            line("dropped tokens", format::count(dropped as u64));
        }
        out.push_str("\n  phases by time\n");
        let phases = self.phases();
        let total: f64 = phases.iter().map(|(_, seconds)| seconds).sum();
        for (name, seconds) in &phases {
            let share = seconds / total.max(f64::MIN_POSITIVE);
            out.push_str(&format!("    {name:<14} {:>5.1} %  {}\n", share * 100.0, bar(share, 40)));
        }
        if !self.expert_tokens.is_empty() {
            out.push_str("\n  tokens per expert, one column an expert, an even share is half height\n");
            for (layer, tokens) in self.expert_tokens.iter().enumerate() {
                let even = tokens.iter().sum::<u64>() as f64 / tokens.len().max(1) as f64;
                let columns: String = tokens.iter().map(|&n| level(n as f64 / even.max(1.0) / 2.0)).collect();
                let (min, max) = (tokens.iter().min().unwrap_or(&0), tokens.iter().max().unwrap_or(&0));
                out.push_str(&format!(
                    "    sparse layer {layer:<3} {columns}  {:.0} % to {:.0} % of even\n",
                    *min as f64 / even.max(1.0) * 100.0,
                    *max as f64 / even.max(1.0) * 100.0,
                ));
            }
        }
        out
    }
}

const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// A block as high as `share` of a line.
fn level(share: f64) -> char {
    LEVELS[(share * LEVELS.len() as f64).clamp(0.0, LEVELS.len() as f64 - 1.0) as usize]
}

/// Up to 40 values over time, from the least to the most.
fn sparkline(values: &[f64]) -> String {
    let (min, max) = values.iter().fold((f64::MAX, f64::MIN), |(min, max), &x| (min.min(x), max.max(x)));
    let stride = values.len().div_ceil(40).max(1);
    let range = (max - min).max(f64::MIN_POSITIVE);
    values
        .chunks(stride)
        .map(|chunk| level((chunk.iter().sum::<f64>() / chunk.len() as f64 - min) / range))
        .collect()
}

fn bar(share: f64, width: usize) -> String {
    "█".repeat((share * width as f64).round() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparkline_falls_with_the_loss() {
        assert_eq!(sparkline(&[3.0, 2.0, 1.0]), "█▅▁");
        assert_eq!(sparkline(&[]), "");
        assert_eq!(sparkline(&[1.0; 400]).chars().count(), 40);
    }

    #[test]
    fn levels_stay_in_their_range() {
        assert_eq!(level(0.0), '▁');
        assert_eq!(level(0.5), '▅');
        assert_eq!(level(7.0), '█');
        assert_eq!(level(f64::NAN), '▁');
    }
}
