//! The report: what a run, or several, has cost in joules and grams, recomputed from the ledger.
//!
//! Grams come from stored joules, so a report can be made again for another place or building. Energy at the
//! computer and energy of the building (times PUE) are kept apart. Joules spent twice because of a crash are in the
//! total and shown beside it.

mod account;
mod boamps;
mod emissions_csv;
mod figures;
mod group;
mod html;
mod json;
pub mod lint;
mod load;
mod markdown;
mod model_card;
mod pricing;
mod run;
mod sci;
mod sums;
mod tables;
mod text;
mod uncertainty;

use std::path::Path;

pub use account::{
    Account, DomainAccount, ExpertAccount, KindAccount, PhaseAccount, SensorHealth, WasteAccount, WeekAccount,
};
pub use model_card::Details;
pub use run::{IntensityRecord, MarkRecord, RunReport, SegmentReport};
pub use sci::{FunctionalUnit, Sci};
pub use uncertainty::{GainError, Range};

use crate::carbon;
use crate::config::{self, Problem};
use crate::error::{Error, Result};

/// The account of one or more runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Each run, in the order given.
    pub runs: Vec<RunReport>,
    /// What the reader should know: segments met twice, runs of one name, ranks that are missing.
    pub notices: Vec<String>,
    /// The functional unit of its software carbon intensity.
    pub per: FunctionalUnit,
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
        let assumptions = load::Assumptions { place: other_place.as_ref(), pue: overrides.pue };
        let mut rows = Vec::new();
        let mut repeated = Vec::new();
        for (at, path) in paths.iter().map(AsRef::as_ref).enumerate() {
            if paths[..at].iter().any(|earlier| group::is_same_file(earlier.as_ref(), path)) {
                repeated.push(format!("{}: given twice; it counts once", path.display()));
                continue;
            }
            rows.extend(load::runs(path, assumptions)?);
        }
        let (runs, notices) = group::runs(rows);
        repeated.extend(notices);
        Ok(Report { runs, notices: repeated, per: FunctionalUnit::default() })
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

    /// All runs by ISO week, the earliest first.
    pub fn weeks(&self) -> Vec<WeekAccount> {
        let mut weeks = Vec::new();
        for run in &self.runs {
            group::add_weeks(&mut weeks, &run.weeks, true);
        }
        weeks.sort_by_key(|week| week.monday);
        weeks
    }

    /// For a terminal.
    pub fn to_text(&self) -> String {
        text::render(self)
    }

    /// For a terminal, by week.
    pub fn to_text_by_week(&self) -> String {
        tables::weeks(self)
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

    /// For programs, by week.
    pub fn to_json_by_week(&self) -> serde_json::Value {
        json::render_weeks(self)
    }
}

#[cfg(test)]
mod tests;
