//! The energy account of a run: closes windows, prices them, and enters each into the ledger once.

use wattle_energy::{
    EnergyMonitor, EnergyTotals, Ledger, Result, RunInfo, RunStatus, WindowEnergy, WindowKind, WindowTags,
};

use crate::config::Config;
use crate::train::{Ended, RunDirectory};

/// A closed window and what it emitted.
#[derive(Clone, Debug)]
pub struct Priced {
    /// The window.
    pub window: WindowEnergy,
    /// Grams of CO2e; none when its energy is unknown.
    pub grams: Option<f64>,
}

/// The books of one process of a run.
#[derive(Debug)]
pub struct EnergyAccount {
    /// None once the books are closed.
    ledger: Option<Ledger>,
    grams_total: f64,
    source: String,
    intensity: String,
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
        source: &str,
        resumed_from_step: Option<u64>,
    ) -> Result<Self> {
        let intensity = config.carbon.intensity()?;
        let intensity_label = format!(
            "{} gCO2e/kWh ({}{})",
            intensity.grams_per_kwh.0,
            intensity.zone,
            intensity.year.map_or(String::new(), |year| format!(", {year}")),
        );
        let info = RunInfo {
            run_id: run.path().file_name().unwrap_or_default().to_string_lossy().into_owned(),
            name: config.run.name.clone(),
            config_hash: blake3::hash(config_toml.as_bytes()).to_hex().to_string(),
            resumed_from_step,
            rank: 0,
            world_size: 1,
            intensity,
            pue: config.carbon.pue,
            wue_l_per_kwh: config.carbon.wue_l_per_kwh,
            embodied: config.carbon.embodied.clone(),
        };
        let ledger = Ledger::open(&run.ledger(), &info)?;
        let grams_total = ledger.spent_before().grams.0;
        Ok(EnergyAccount {
            ledger: Some(ledger),
            grams_total,
            source: source.to_owned(),
            intensity: intensity_label,
        })
    }

    /// Closes the window since the last one. `step` is the last finished step.
    ///
    /// # Errors
    /// When an earlier window could not be written.
    pub fn close(
        &mut self,
        monitor: &EnergyMonitor,
        kind: WindowKind,
        step: u64,
        tokens: u64,
        loss: Option<f64>,
    ) -> Result<Priced> {
        let window = monitor.close_window(kind);
        self.enter(window, WindowTags { step: Some(step), tokens, loss })
    }

    fn enter(&mut self, window: WindowEnergy, tags: WindowTags) -> Result<Priced> {
        let grams = match &mut self.ledger {
            Some(ledger) => ledger.record(&window, tags)?.map(|grams| grams.0),
            None => None,
        };
        self.grams_total += grams.unwrap_or(0.0);
        Ok(Priced { window, grams })
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
        self.enter(totals.remainder(), WindowTags::default())?;
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

    /// The carbon intensity in use, with its place and year.
    pub fn intensity_label(&self) -> &str {
        &self.intensity
    }
}
