//! What can go wrong outside a single meter reading, with what to do about it.

use std::path::{Path, PathBuf};

use crate::config::Problem;
use crate::meter::MeterError;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// An energy operation could not be done.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// A meter is missing, forbidden or failed at the start.
    #[error(transparent)]
    Meter(#[from] MeterError),
    /// No carbon intensity is known for a place.
    #[error(
        "carbon.location: no carbon intensity for {given:?}; nearest known: {}; \
         give one of them, or set carbon.grams_per_kwh",
        nearest.join(", ")
    )]
    Location {
        /// What was asked for.
        given: String,
        /// The closest known codes with their names.
        nearest: Vec<String>,
    },
    /// A source of carbon intensities could not be asked, or gave no usable answer.
    #[error("{whom}: {message}; {remedy}")]
    Provider {
        /// The provider and the place, or the file.
        whom: String,
        /// What went wrong.
        message: String,
        /// What to do.
        remedy: String,
    },
    /// A setting is outside its range.
    #[error("{key} {message}")]
    Setting {
        /// Which one.
        key: String,
        /// What it is and what was expected.
        message: String,
    },
    /// The ledger's file could not be read or written.
    #[error("{}: cannot {action} the energy ledger: {reason}; {remedy}", path.display())]
    Ledger {
        /// The file.
        path: PathBuf,
        /// What was being done: open, read, write.
        action: &'static str,
        /// The store's own words.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The operating system refused a thread.
    #[error("cannot start the {what} thread: {reason}; raise the limit on processes (ulimit -u)")]
    Thread {
        /// Which thread.
        what: &'static str,
        /// The system's own words.
        reason: String,
    },
    /// A planner's case cannot be used.
    #[error("{}", list(file, problems))]
    Case {
        /// The file, as it was named.
        file: PathBuf,
        /// All problems.
        problems: Vec<Problem>,
    },
    /// The planner's table has no such hardware.
    #[error("no hardware {given:?} is known; nearest known: {}", nearest.join(", "))]
    Hardware {
        /// What was asked for.
        given: String,
        /// The closest known names.
        nearest: Vec<String>,
    },
}

fn list(file: &Path, problems: &[Problem]) -> String {
    let count = match problems.len() {
        1 => "1 problem".to_owned(),
        len => format!("{len} problems"),
    };
    problems.iter().fold(format!("{}: {count}", file.display()), |text, Problem { key, message }| {
        match key.is_empty() {
            true => format!("{text}\n  {message}"),
            false => format!("{text}\n  {key}: {message}"),
        }
    })
}
