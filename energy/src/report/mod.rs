//! The report: what a run, or several, has cost in joules and grams, recomputed from the ledger.
//!
//! Grams come from stored joules, so a report can be made again for another place or building. Energy at the
//! computer and energy of the building (times PUE) are kept apart. Joules spent twice because of a crash are in the
//! total and shown beside it.

mod json;
mod load;
mod text;

use std::path::{Path, PathBuf};

use crate::carbon::{self, GridIntensity};
use crate::config::{self, Problem};
use crate::error::{Error, Result};
use crate::ledger::RunStatus;
use crate::meter::Provenance;
use crate::units::{Grams, Joules, MicroJoules, Seconds, Watts};
use crate::window::sum_and_measured_share;

/// The account of one or more runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Each run, in the order given.
    pub runs: Vec<RunReport>,
}

/// Other assumptions than those the runs were counted with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// Another place.
    pub location: Option<String>,
    /// Another power usage effectiveness.
    pub pue: Option<f64>,
}

/// The account of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct RunReport {
    /// The ledger it was read from.
    pub ledger: PathBuf,
    /// The run's lasting name.
    pub run_id: String,
    /// Its name for people.
    pub name: String,
    /// The configuration's hash.
    pub config_hash: String,
    /// How it stands.
    pub status: RunStatus,
    /// RFC 3339, UTC.
    pub started_at: String,
    /// RFC 3339, UTC; `None` while it runs or when it was killed.
    pub ended_at: Option<String>,
    /// Its process lifetimes.
    pub segments: Vec<SegmentReport>,
    /// The balance.
    pub account: Account,
    /// The loss of the last step that counts, in nats.
    pub final_loss: Option<f64>,
}

/// One process lifetime of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct SegmentReport {
    /// From 0.
    pub number: u64,
    /// How it ended.
    pub status: RunStatus,
    /// The step it went on from.
    pub resumed_from_step: Option<u64>,
    /// Where it ran.
    pub host: String,
    /// The intensity its grams are counted with, after overrides.
    pub intensity: GridIntensity,
    /// The PUE its grams are counted with, after overrides.
    pub pue: f64,
    /// Energy at the computer.
    pub energy: MicroJoules,
}

/// Sums of one run or of many.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Account {
    /// Time inside windows.
    pub duration: Seconds,
    /// Steps in the model: those done again count once.
    pub steps: u64,
    /// Tokens in the model.
    pub tokens: u64,
    /// Energy at the computer, all of it.
    pub energy: MicroJoules,
    /// The part of it spent on steps that were done again after a resume.
    pub superseded: MicroJoules,
    /// Energy of the building: each segment's energy times its PUE.
    pub facility: Joules,
    /// Emissions of the building's energy.
    pub grams: Grams,
    /// Windows in which a sensor could not be read.
    pub incomplete_windows: u64,
    /// What it was spent on.
    pub kinds: Vec<KindAccount>,
    /// What drew it, and how that is known.
    pub domains: Vec<DomainAccount>,
}

/// Sums of one kind of window.
#[derive(Clone, Debug, PartialEq)]
pub struct KindAccount {
    /// `step`, `evaluation`, ...
    pub kind: String,
    /// Number of windows.
    pub windows: u64,
    /// Their time.
    pub duration: Seconds,
    /// Their energy.
    pub energy: MicroJoules,
}

/// Sums of one domain by the way they were obtained.
#[derive(Clone, Debug, PartialEq)]
pub struct DomainAccount {
    /// `package-0`, `gpu-0`, ...
    pub domain: String,
    /// `rapl`, `nvml`, `model`.
    pub sensor: String,
    /// How the joules came about.
    pub source: Provenance,
    /// The energy.
    pub energy: MicroJoules,
}

impl Report {
    /// Reads the ledgers of run directories, or ledger files. A ledger may hold several runs.
    ///
    /// # Errors
    /// When a ledger cannot be read, the other location is unknown, or the other PUE is out of range.
    pub fn from_ledgers(paths: &[impl AsRef<Path>], overrides: &Overrides) -> Result<Self> {
        let other_place = overrides.location.as_deref().map(carbon::lookup).transpose()?;
        if let Some(Problem { key, message }) = overrides.pue.and_then(config::pue_problem) {
            return Err(Error::Setting { key, message });
        }
        let mut runs = Vec::new();
        for path in paths {
            runs.extend(load::runs(path.as_ref(), other_place.as_ref(), overrides.pue)?);
        }
        Ok(Report { runs })
    }

    /// As [`Report::from_ledgers`], for one.
    ///
    /// # Errors
    /// The same.
    pub fn from_ledger(path: &Path, overrides: &Overrides) -> Result<Self> {
        Self::from_ledgers(&[path], overrides)
    }

    /// All runs together.
    pub fn total(&self) -> Account {
        let mut total = Account::default();
        for run in &self.runs {
            total.add(&run.account);
        }
        total
    }

    /// For a terminal.
    pub fn to_text(&self) -> String {
        text::render(self)
    }

    /// For programs: stable keys with the unit in the name.
    pub fn to_json(&self) -> serde_json::Value {
        json::render(self)
    }
}

impl Account {
    /// The energy at the computer; `None` when no sensor was ever read, which is not the same as none used.
    pub fn joules(&self) -> Option<Joules> {
        (!self.domains.is_empty()).then(|| self.energy.joules())
    }

    /// Share of the joules that was measured, 0 to 1; the rest was modelled.
    pub fn measured_share(&self) -> f64 {
        sum_and_measured_share(self.domains.iter().map(|domain| (domain.source, domain.energy))).1
    }

    /// All energy, superseded and other work included, for each token in the model.
    pub fn joules_per_token(&self) -> Option<f64> {
        self.joules().filter(|_| self.tokens > 0).map(|joules| joules.0 / self.tokens as f64)
    }

    /// Mean power over the time inside windows.
    pub fn average_power(&self) -> Option<Watts> {
        self.joules()?.over(self.duration)
    }

    fn add(&mut self, other: &Account) {
        self.duration = Seconds(self.duration.0 + other.duration.0);
        self.steps += other.steps;
        self.tokens += other.tokens;
        self.energy += other.energy;
        self.superseded += other.superseded;
        self.facility = self.facility + other.facility;
        self.grams += other.grams;
        self.incomplete_windows += other.incomplete_windows;
        for kind in &other.kinds {
            match self.kinds.iter_mut().find(|own| own.kind == kind.kind) {
                Some(own) => {
                    own.windows += kind.windows;
                    own.duration = Seconds(own.duration.0 + kind.duration.0);
                    own.energy += kind.energy;
                }
                None => self.kinds.push(kind.clone()),
            }
        }
        for domain in &other.domains {
            let same = |own: &&mut DomainAccount| {
                (&own.domain, &own.sensor, own.source) == (&domain.domain, &domain.sensor, domain.source)
            };
            match self.domains.iter_mut().find(same) {
                Some(own) => own.energy += domain.energy,
                None => self.domains.push(domain.clone()),
            }
        }
    }
}

#[cfg(test)]
mod tests;
