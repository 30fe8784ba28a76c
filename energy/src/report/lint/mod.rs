//! A linter for reports that cannot be true: CodeCarbon's CSV files, and our own JSON.
//!
//! It holds the numbers of a row against each other and against what is known to go wrong in the wild. What it finds is
//! a contradiction or a known constant, not an opinion on a run; a clean report may still be wrong.

mod csv_rows;
mod own_json;
mod rules;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, Result};

/// Something in a report that cannot be true.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The report.
    pub file: PathBuf,
    /// `row 2` of a CSV file, where the header is row 1; `runs[0]` of a JSON report.
    pub place: String,
    /// The columns and what stands in them.
    pub values: Vec<(String, String)>,
    /// Why that cannot be.
    pub reason: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: ", self.file.display(), self.place)?;
        for (at, (name, value)) in self.values.iter().enumerate() {
            let value = if value.is_empty() { "(empty)" } else { value };
            write!(f, "{}{name} = {value}", if at > 0 { ", " } else { "" })?;
        }
        write!(f, "{}{}", if self.values.is_empty() { "" } else { ": " }, self.reason)
    }
}

/// Reads a report and tells what in it cannot be true, in order of its rows.
///
/// # Errors
/// When the file cannot be read or is no report that is known.
pub fn lint(path: &Path) -> Result<Vec<Finding>> {
    let refuse = |reason: String, remedy| Error::ReportFile { path: path.into(), reason, remedy };
    let bytes = std::fs::read(path)
        .map_err(|error| refuse(error.to_string(), "give a file that exists and may be read"))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| refuse("it is no UTF-8 text".into(), "give an emissions.csv or a report in JSON"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    match text.trim_start().starts_with(['{', '[']) {
        true => own_json::lint(path, text),
        false => csv_rows::lint(path, text),
    }
}

#[cfg(test)]
mod tests;
