//! The rows of CodeCarbon's CSV files, of any version.

use std::collections::HashMap;
use std::path::Path;

use csv::{ReaderBuilder, StringRecord};
use jiff::civil::DateTime;

use super::super::emissions_csv::Layout;
use super::Finding;
use super::rules::Row;
use crate::error::{Error, Result};

/// Columns that hold numbers. The rest are words, or are not looked at.
const NUMBERS: [&str; 15] = [
    "duration",
    "emissions",
    "emissions_rate",
    "cpu_power",
    "gpu_power",
    "ram_power",
    "cpu_energy",
    "gpu_energy",
    "ram_energy",
    "energy_consumed",
    "water_consumed",
    "gpu_count",
    "ram_total_size",
    "pue",
    "wue",
];

/// Seconds by which two clocks of one machine may have moved apart: timestamps are whole seconds.
const CLOCK_SECONDS: f64 = 5.0;

pub(super) fn lint(path: &Path, text: &str) -> Result<Vec<Finding>> {
    let refuse = |reason: String| Error::ReportFile {
        path: path.into(),
        reason,
        remedy: "give an emissions.csv of CodeCarbon (12, 31 or 38 columns, or 36 of tasks) or a report in JSON",
    };
    let mut reader = ReaderBuilder::new().flexible(true).from_reader(text.as_bytes());
    let header = reader.headers().map_err(|error| refuse(error.to_string()))?.clone();
    if Layout::of(&header).is_none() {
        return Err(refuse(format!("its {} columns are those of no report that is known", header.len())));
    }
    let mut rows = Rows { path, header: &header, last: HashMap::new(), findings: Vec::new() };
    for (at, record) in reader.records().enumerate() {
        let record = record.map_err(|error| refuse(error.to_string()))?;
        rows.look_at(&format!("row {}", at + 2), &record);
    }
    Ok(rows.findings)
}

/// The rows of one file.
struct Rows<'a> {
    path: &'a Path,
    header: &'a StringRecord,
    /// For each run the time and the duration of its newest row.
    last: HashMap<String, (DateTime, f64)>,
    findings: Vec<Finding>,
}

impl Rows<'_> {
    fn look_at(&mut self, place: &str, record: &StringRecord) {
        if record.len() != self.header.len() {
            let reason = format!(
                "{} fields of {}: one was left out, so those after it stand in the wrong columns",
                record.len(),
                self.header.len()
            );
            self.find(place, record, &[], reason);
            return;
        }
        for name in NUMBERS {
            let text = field(self.header, record, name);
            if !text.is_empty() && !text.parse::<f64>().is_ok_and(f64::is_finite) {
                self.find(place, record, &[name], "it is no number".into());
            }
        }
        let get = |name: &str| {
            field(self.header, record, name).parse::<f64>().ok().filter(|value| value.is_finite())
        };
        let country = field(self.header, record, "country_iso_code");
        for (columns, reason) in (Row { get: &get, country }).contradictions() {
            self.find(place, record, &columns, reason);
        }
        self.time(place, record, get("duration"));
    }

    /// Rows of one run go on: their durations grow no faster than their times.
    fn time(&mut self, place: &str, record: &StringRecord, duration: Option<f64>) {
        let text = field(self.header, record, "timestamp");
        let Ok(at) = text.parse::<DateTime>() else {
            self.find(place, record, &["timestamp"], "it is no time such as 2026-11-24T12:00:00".into());
            return;
        };
        let run = field(self.header, record, "run_id");
        // Tasks begin anew each.
        if run.is_empty() || !field(self.header, record, "task_name").is_empty() {
            return;
        }
        let Some(seconds) = duration else { return };
        if let Some((before, seconds_before)) = self.last.insert(run.to_owned(), (at, seconds)) {
            let passed = at.duration_since(before).as_secs_f64();
            let grown = seconds - seconds_before;
            if grown > passed + CLOCK_SECONDS {
                let reason = format!(
                    "the run's duration grew by {grown:.0} s since its row before, and {passed:.0} s had passed"
                );
                self.find(place, record, &["timestamp", "duration", "run_id"], reason);
            }
        }
    }

    fn find(&mut self, place: &str, record: &StringRecord, columns: &[&str], reason: String) {
        let values = columns
            .iter()
            .filter(|name| self.header.iter().any(|column| column == **name))
            .map(|name| ((*name).to_owned(), field(self.header, record, name).to_owned()));
        let values = values.collect();
        self.findings.push(Finding { file: self.path.to_owned(), place: place.to_owned(), values, reason });
    }
}

/// The field of a record in a column, by the column's name.
fn field<'r>(header: &StringRecord, record: &'r StringRecord, name: &str) -> &'r str {
    let at = header.iter().position(|column| column == name);
    at.and_then(|at| record.get(at)).unwrap_or_default().trim()
}
