//! The energy account of a run: closes windows, prices them, and enters each into the ledger once.

use std::path::PathBuf;
use std::time::Duration;

use wattle_energy::attribution::PhaseEnergy;
use wattle_energy::{
    Attribution, CarbonFeed, EnergyMonitor, EnergyTotals, GridIntensity, Ledger, MarkKind, Result, RunInfo,
    RunStatus, Waste, WindowEnergy, WindowKind, WindowTags,
};

use crate::config::Config;
use crate::train::{Ended, RunDirectory, StepReport};

/// A closed window and what it emitted.
#[derive(Clone, Debug)]
pub struct Priced {
    /// The window.
    pub window: WindowEnergy,
    /// Grams of CO2e; none when its energy is unknown.
    pub grams: Option<f64>,
    /// Its energy by phase, for a step whose energy is known.
    pub phases: Vec<PhaseEnergy>,
}

/// The books of one process of a run.
#[derive(Debug)]
pub struct EnergyAccount {
    /// None once the books are closed.
    ledger: Option<Ledger>,
    feed: CarbonFeed,
    /// The figure in use.
    intensity: GridIntensity,
    grams_total: f64,
    source: String,
}

impl EnergyAccount {
    /// Opens the ledger of a run that goes on after `resumed_from_step`, or begins.
    ///
    /// # Errors
    /// A ledger that cannot be written, or a location without a figure.
    pub fn open(
        run: &RunDirectory,
        config: &Config,
        config_toml: &str,
        monitor: &EnergyMonitor,
        resumed_from_step: Option<u64>,
    ) -> Result<Self> {
        let intensity = config.carbon.intensity()?;
        let feed = CarbonFeed::start(&config.carbon, cache_directory().as_deref())?;
        let info = RunInfo {
            run_id: run.path().file_name().unwrap_or_default().to_string_lossy().into_owned(),
            name: config.run.name.clone(),
            config_hash: blake3::hash(config_toml.as_bytes()).to_hex().to_string(),
            resumed_from_step,
            rank: 0,
            world_size: 1,
            intensity: intensity.clone(),
            pue: config.carbon.pue,
            wue_l_per_kwh: config.carbon.wue_l_per_kwh,
            embodied: config.carbon.embodied.clone(),
        };
        let mut ledger = Ledger::open(&run.ledger(), &info)?;
        // A commit more often than ten times a second would cost more than the energy it could save is worth.
        let period = Duration::from_millis(config.energy.interval_ms.max(100));
        ledger.watch(period, monitor.in_progress())?;
        let grams_total = ledger.spent_before().grams.0;
        Ok(EnergyAccount {
            ledger: Some(ledger),
            feed,
            intensity,
            grams_total,
            source: monitor.source_label().to_owned(),
        })
    }

    /// Closes the window since the last one, which was no step. `step` is the last finished step.
    ///
    /// # Errors
    /// When an earlier window could not be written.
    pub fn close(
        &mut self,
        monitor: &EnergyMonitor,
        kind: WindowKind,
        step: u64,
        loss: Option<f64>,
    ) -> Result<Priced> {
        let tags = WindowTags { step: Some(step), tokens: 0, loss };
        self.enter(monitor.close_window(kind), tags, &Attribution::default())
    }

    /// Closes the window of a step and splits its energy.
    ///
    /// # Errors
    /// When an earlier window could not be written.
    pub fn close_step(
        &mut self,
        monitor: &EnergyMonitor,
        step: u64,
        report: &StepReport,
        first_sparse_layer: usize,
    ) -> Result<Priced> {
        let window = monitor.close_window(WindowKind::Step);
        let tags = WindowTags {
            step: Some(step),
            tokens: report.num_tokens,
            loss: Some(report.losses.cross_entropy),
        };
        let layers = (first_sparse_layer..).zip(&report.computed_per_expert);
        let experts: Vec<_> = layers.map(|(layer, computed)| (layer, computed.as_slice())).collect();
        let attribution = Attribution {
            phases: &report.phases.map(|(phase, spent)| (phase.name(), spent)),
            experts: &experts,
            waste: &work_in_vain(report),
        };
        self.enter(window, tags, &attribution)
    }

    fn enter(
        &mut self,
        window: WindowEnergy,
        tags: WindowTags,
        attribution: &Attribution<'_>,
    ) -> Result<Priced> {
        let (grams, phases) = match &mut self.ledger {
            Some(ledger) => {
                for (role, intensity) in self.feed.take_news() {
                    ledger.learn(&intensity, role)?;
                }
                if self.feed.is_stale() {
                    ledger.forget();
                }
                if self.intensity != *ledger.intensity() {
                    self.intensity = ledger.intensity().clone();
                }
                let (grams, split) = ledger.record_attributed(&window, tags, attribution)?;
                (grams.map(|grams| grams.0), split.phases)
            }
            None => (None, Vec::new()),
        };
        self.grams_total += grams.unwrap_or(0.0);
        Ok(Priced { window, grams, phases })
    }

    /// What a person should hear about the sensors and the sources of carbon intensities since the last call; each
    /// also becomes a mark in the ledger.
    ///
    /// # Errors
    /// When an earlier entry could not be written.
    pub fn alerts(&mut self, monitor: &EnergyMonitor, step: u64) -> Result<Vec<String>> {
        let of_sensors = monitor.take_alerts().into_iter().map(|alert| (MarkKind::Sensor, alert.to_string()));
        let of_carbon = self.feed.take_alerts().into_iter().map(|alert| (MarkKind::Carbon, alert));
        let mut alerts = Vec::new();
        for (kind, alert) in of_sensors.chain(of_carbon) {
            if let Some(ledger) = &mut self.ledger {
                ledger.mark(kind, Some(step), &alert)?;
            }
            alerts.push(alert);
        }
        Ok(alerts)
    }

    /// Waits until all windows so far are on disk.
    ///
    /// # Errors
    /// When they could not be written.
    pub fn flush(&mut self) -> Result<()> {
        self.ledger.as_mut().map_or(Ok(()), Ledger::flush)
    }

    /// Closes the books: the remainder becomes a window of its own, the segment gets its status; none means failed.
    ///
    /// # Errors
    /// When the ledger could not be written.
    pub fn finish(&mut self, monitor: &EnergyMonitor, ended: Option<Ended>) -> Result<EnergyTotals> {
        let mut totals = monitor.totals();
        self.enter(totals.remainder(), WindowTags::default(), &Attribution::default())?;
        if let Some(ledger) = self.ledger.take() {
            let status = match ended {
                Some(Ended::Completed) => RunStatus::Completed,
                Some(Ended::MaxSteps | Ended::Signalled) => RunStatus::Interrupted,
                None => RunStatus::Failed,
            };
            totals.overhead.ledger_cpu = ledger.finish(status, Some(&totals))?;
        }
        Ok(totals)
    }

    /// Carbon of the run so far, earlier processes of it included, in grams of CO2e.
    pub fn grams_total(&self) -> f64 {
        self.grams_total
    }

    /// What the joules come from.
    pub fn source_label(&self) -> &str {
        &self.source
    }

    /// The carbon intensity in use.
    pub fn intensity(&self) -> &GridIntensity {
        &self.intensity
    }

    /// The carbon intensity in use, with its place and year.
    pub fn intensity_label(&self) -> String {
        let now = &self.intensity;
        let year = now.year.map_or(String::new(), |year| format!(", {year}"));
        format!("{} gCO2e/kWh ({}{year})", now.grams_per_kwh.0, now.zone)
    }
}

/// The parts of a step that taught the model nothing: all of a skipped step, and of others the part of its
/// assignments that found no place at their expert.
fn work_in_vain(report: &StepReport) -> Vec<Waste> {
    if !report.applied {
        return vec![Waste { reason: "skipped", count: 1, share: 1.0 }];
    }
    let dropped: u64 = report.routing.iter().map(|layer| layer.dropped_tokens).sum();
    let assigned: u64 = report.tokens_per_expert.iter().flatten().sum();
    if dropped == 0 {
        return Vec::new();
    }
    vec![Waste { reason: "dropped", count: dropped, share: dropped as f64 / assigned as f64 }]
}

/// Where answers about carbon intensities are kept for all runs of a user; none where there is no such place.
fn cache_directory() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(base.join("wattle").join("carbon"))
}
