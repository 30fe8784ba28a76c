//! What earlier runs on this machine reached: the share of the peak and the power of their steps.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use wattle_energy::planner::Range;
use wattle_energy::{Overrides, Report, WindowKind, host_name};

use crate::config::Config;
use crate::train::RunDirectory;

/// Steps at the start of each process that only warm up.
const NUM_WARM_UP_STEPS: usize = 3;
/// Runs that are looked at, the newest first.
const MAX_RUNS: usize = 50;
/// Bytes of a run's metrics that are read, from the end: thousands of steps.
const MAX_METRICS_BYTES: u64 = 4 << 20;

/// Measurements of earlier runs.
#[derive(Debug, PartialEq)]
pub(super) struct History {
    /// Share of the machine's peak, over the runs' medians.
    pub(super) efficiency: Range,
    /// Mean power of the steps; `None` when no run counted its energy.
    pub(super) watts: Option<Range>,
    /// Whether every joule behind `watts` was measured, and none modelled.
    pub(super) is_measured: bool,
    /// How many runs.
    pub(super) num_runs: usize,
    /// Whether they trained the very model that is planned.
    pub(super) is_same_model: bool,
}

/// One run.
struct Observation {
    efficiency: f64,
    watts: Option<f64>,
    is_measured: bool,
    is_same_model: bool,
}

#[derive(Deserialize)]
struct Step {
    mfu: f64,
}

impl History {
    /// Looks through the runs below `run.directory` that were made on this machine. Those of the same model, sequence
    /// length and precision speak alone when there are some. What cannot be read is passed over.
    pub(super) fn of(config: &Config) -> Option<Self> {
        let observed: Vec<Observation> = newest_runs(&config.run.directory)
            .iter()
            .filter_map(|path| observe(&RunDirectory::at(path), config))
            .collect();
        let is_same_model = observed.iter().any(|run| run.is_same_model);
        let used: Vec<&Observation> =
            observed.iter().filter(|run| run.is_same_model == is_same_model).collect();
        Some(History {
            efficiency: Range::of_observations(used.iter().map(|run| run.efficiency))?,
            watts: Range::of_observations(used.iter().filter_map(|run| run.watts)),
            is_measured: used.iter().all(|run| run.is_measured),
            num_runs: used.len(),
            is_same_model,
        })
    }

    /// In words: how many runs, and of what.
    pub(super) fn describe(&self) -> String {
        let runs = if self.num_runs == 1 { "earlier run" } else { "earlier runs" };
        let model = if self.is_same_model { "of this model" } else { "of other models" };
        format!("{} {runs} {model} on this machine", self.num_runs)
    }
}

fn newest_runs(base: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(base).into_iter().flatten().flatten();
    let mut runs: Vec<_> = entries
        .map(|entry| entry.path())
        .filter_map(|path| Some((RunDirectory::at(&path).ledger().metadata().ok()?.modified().ok()?, path)))
        .collect();
    runs.sort();
    runs.into_iter().rev().take(MAX_RUNS).map(|(_, path)| path).collect()
}

fn observe(run: &RunDirectory, planned: &Config) -> Option<Observation> {
    let report = Report::from_ledger(&run.ledger(), &Overrides::default()).ok()?;
    let here = host_name();
    if !report.runs.iter().flat_map(|run| &run.segments).all(|segment| segment.host == here) {
        return None;
    }
    let efficiency = median_mfu(&run.metrics())?;
    let total = report.total();
    let steps = total.kinds.iter().find(|kind| kind.kind == WindowKind::Step.as_str())?;
    let watts = steps.energy.joules().over(steps.duration).map(|watts| watts.0).filter(|watts| *watts > 0.0);
    let earlier = Config::load(&run.config(), &[]).ok()?.config;
    let shape = |config: &Config| {
        (config.model.clone(), config.moe.clone(), config.data.sequence_length, config.precision.clone())
    };
    Some(Observation {
        efficiency,
        watts,
        is_measured: total.measured_share() == 1.0,
        is_same_model: shape(&earlier) == shape(planned),
    })
}

/// The median over the steps of a run's metrics, without those that warm up.
fn median_mfu(metrics: &Path) -> Option<f64> {
    let mut file = File::open(metrics).ok()?;
    let start = file.metadata().ok()?.len().saturating_sub(MAX_METRICS_BYTES);
    file.seek(SeekFrom::Start(start)).ok()?;
    // The first line may be cut, or belongs to the warm-up.
    let lines = BufReader::new(file).lines().map_while(Result::ok).skip(NUM_WARM_UP_STEPS);
    let steps = lines.filter_map(|line| serde_json::from_str::<Step>(&line).ok());
    let median = Range::of_observations(steps.map(|step| step.mfu).filter(|mfu| *mfu > 0.0))?.mid;
    median.is_finite().then_some(median)
}
