//! The report: what a run, or several, has cost in joules and grams, recomputed from the ledger.
//!
//! Grams come from stored joules, so a report can be made again for another place or building. Energy at the
//! computer and energy of the building (times PUE) are kept apart. Joules spent twice because of a crash are in the
//! total and shown beside it.

mod account;
mod html;
mod json;
mod load;
mod pricing;
mod text;

use std::path::Path;

pub use account::{
    Account, DomainAccount, ExpertAccount, IntensityRecord, KindAccount, MarkRecord, PhaseAccount, RunReport,
    SegmentReport, WasteAccount,
};

use crate::carbon;
use crate::config::{self, Problem};
use crate::error::{Error, Result};

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

    /// For a browser: one page with plots, which fetches nothing. Reads the ledgers again, for what changed over time.
    ///
    /// # Errors
    /// When a ledger cannot be read any more.
    pub fn to_html(&self) -> Result<String> {
        html::render(self)
    }

    /// For programs: stable keys with the unit in the name.
    pub fn to_json(&self) -> serde_json::Value {
        json::render(self)
    }
}

#[cfg(test)]
mod tests;
