//! Intensities of a file: CSV with a header, or a JSON list of objects. It is read again at each look, so it may grow
//! or be corrected while a run goes on.
//!
//! Columns or keys: `from` and `until` (RFC 3339, with or without seconds, always with `Z` or an offset),
//! `grams_per_kwh` (empty or null: no value), and if wanted `basis`, `estimated`, `accounting`.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::provider::{Answer, Failure, FailureKind, LOOK_BACK, Moment, Provider, parse_time, plausible};
use super::{Accounting, Basis, GridIntensity, Period};
use crate::error::Error;
use crate::units::GramsPerKilowattHour;

/// A year of five-minute values is under ten megabytes.
const SIZE_LIMIT_BYTES: u64 = 64 << 20;

const TIME: &str = "a time such as 2026-03-29T01:00Z or 2026-03-29T02:00+01:00";
const GRAMS: &str = "a number from 0 to 5000";
const BASES: &str = "lifecycle_average, direct_average, marginal or user_declared";

const COLUMNS: [&str; 6] = ["from", "until", "grams_per_kwh", "basis", "estimated", "accounting"];

/// A file of intensities.
pub(super) struct FileProvider {
    path: PathBuf,
    zone: String,
    whom: String,
}

impl FileProvider {
    /// Opens and reads the file once, so that a mistake in it is told at the start of a run.
    pub(super) fn open(path: PathBuf, zone: Option<String>) -> Result<Self, Error> {
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let zone = zone.or(stem).unwrap_or_default();
        let provider = FileProvider { whom: path.display().to_string(), path, zone };
        provider.read()?;
        Ok(provider)
    }

    fn read(&self) -> Result<Vec<GridIntensity>, Failure> {
        let text = self.text()?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let is_json = text.trim_start().starts_with(['[', '{']);
        let mut rows = match is_json {
            true => self.json(text)?,
            false => self.csv(text)?,
        };
        if let Some((place, row)) = rows.iter().find(|(_, row)| row.from >= row.until) {
            let message = format!("the period ends at {} and starts at {}", row.until, row.from);
            return Err(self.wrong(place, &message));
        }
        rows.sort_by_key(|(_, row)| row.from);
        for ((_, before), (place, row)) in rows.iter().zip(rows.iter().skip(1)) {
            if row.from < before.until {
                let message = format!("the period overlaps that from {}", before.from);
                return Err(self.wrong(place, &message));
            }
        }
        Ok(rows.into_iter().filter_map(|(_, row)| self.intensity(row)).collect())
    }

    fn text(&self) -> Result<String, Failure> {
        let cannot = |reason: String| {
            let remedy = "check carbon.providers.path and the permissions of the file";
            Failure::new(&self.whom, FailureKind::Passing, format!("cannot be read: {reason}"), remedy)
        };
        let opened = File::open(&self.path).map_err(|error| cannot(error.to_string()))?;
        if fs::metadata(&self.path).is_ok_and(|found| found.is_dir()) {
            return Err(cannot("it is a directory".into()));
        }
        let mut text = String::new();
        let mut limited = opened.take(SIZE_LIMIT_BYTES + 1);
        limited.read_to_string(&mut text).map_err(|error| cannot(error.to_string()))?;
        match text.len() as u64 > SIZE_LIMIT_BYTES {
            true => Err(cannot(format!("it has more than {SIZE_LIMIT_BYTES} bytes"))),
            false => Ok(text),
        }
    }

    fn json(&self, text: &str) -> Result<Vec<(Place, Row)>, Failure> {
        let rows: Vec<Row> = serde_json::from_str(text).map_err(|error| {
            let shown = error.to_string();
            // serde_json ends its messages with the place, which stands in front here.
            let what = shown.split(" at line ").next().unwrap_or_default();
            self.wrong(&Place::Line(error.line()), what)
        })?;
        Ok((1..).map(Place::Entry).zip(rows).collect())
    }

    fn csv(&self, text: &str) -> Result<Vec<(Place, Row)>, Failure> {
        let mut lines = (1..).map(Place::Line).zip(text.lines()).filter(|(_, line)| {
            let line = line.trim();
            !line.is_empty() && !line.starts_with('#')
        });
        let (place, header) = lines.next().ok_or_else(|| self.wrong(&Place::Line(1), "the file is empty"))?;
        let names: Vec<&str> = fields(header).collect();
        for name in &names {
            if !COLUMNS.contains(name) {
                let message = format!("the column {name:?} is not known; known are {}", COLUMNS.join(", "));
                return Err(self.wrong(&place, &message));
            }
        }
        if let Some(missing) = COLUMNS[..3].iter().find(|column| !names.contains(column)) {
            return Err(self.wrong(&place, &format!("the column {missing} is missing")));
        }
        lines
            .map(|(place, line)| {
                let row = csv_row(&names, line).map_err(|message| self.wrong(&place, &message))?;
                Ok((place, row))
            })
            .collect()
    }

    fn wrong(&self, place: &Place, message: &str) -> Failure {
        let whom = match place {
            Place::Line(line) => format!("{}, line {line}", self.whom),
            Place::Entry(entry) => format!("{}, entry {entry}", self.whom),
        };
        let remedy = "mend the file; docs/carbon.md tells its form";
        Failure::new(&whom, FailureKind::Passing, message, remedy)
    }

    fn intensity(&self, row: Row) -> Option<GridIntensity> {
        Some(GridIntensity {
            grams_per_kwh: GramsPerKilowattHour(row.grams_per_kwh?),
            zone: self.zone.clone(),
            year: None,
            basis: row.basis,
            accounting: row.accounting,
            source: file_name(&self.path).into(),
            period: Some(Period { from: row.from, until: row.until }),
            estimated: row.estimated,
        })
    }
}

impl Provider for FileProvider {
    fn whom(&self) -> &str {
        &self.whom
    }

    fn delay(&self) -> Duration {
        Duration::ZERO
    }

    fn recent(&mut self, now: Moment) -> Result<Answer, Failure> {
        let day_ago = now.wall.checked_sub(LOOK_BACK).unwrap_or(now.wall);
        let mut values = self.read()?;
        // The file may hold a year: what is long past or still to come is no news.
        values.retain(|value| {
            value.period.is_some_and(|period| period.until > day_ago && period.from <= now.wall)
        });
        match values.is_empty() {
            false => Ok(Answer { values, ..Answer::default() }),
            true => Err(Failure::new(
                &self.whom,
                FailureKind::Passing,
                format!("has no value for {}", now.wall.strftime("%Y-%m-%dT%H:%MZ")),
                "add the period to the file; it is read again later",
            )),
        }
    }

    fn history(&mut self, span: Period, _now: Moment) -> Result<Vec<GridIntensity>, Failure> {
        let mut values = self.read()?;
        values.retain(|value| value.period.is_some_and(|period| period.overlaps(span)));
        Ok(values)
    }
}

/// Where in a file.
enum Place {
    Line(usize),
    Entry(usize),
}

/// One period of a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    #[serde(deserialize_with = "time")]
    from: Timestamp,
    #[serde(deserialize_with = "time")]
    until: Timestamp,
    #[serde(deserialize_with = "grams")]
    grams_per_kwh: Option<f64>,
    #[serde(default = "user_declared")]
    basis: Basis,
    #[serde(default)]
    estimated: bool,
    #[serde(default)]
    accounting: Accounting,
}

fn user_declared() -> Basis {
    Basis::UserDeclared
}

fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_time(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is not {TIME}")))
}

fn grams<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    let grams = Option::<f64>::deserialize(deserializer)?;
    match grams.filter(|grams| !plausible(*grams)) {
        Some(wrong) => Err(D::Error::custom(format!("{wrong} is not {GRAMS}"))),
        None => Ok(grams),
    }
}

/// The fields of a line: no field of this table needs a comma, so quotes are only taken off.
fn fields(line: &str) -> impl Iterator<Item = &str> {
    line.split(',').map(|field| field.trim().trim_matches('"').trim())
}

fn csv_row(names: &[&str], line: &str) -> Result<Row, String> {
    let given: Vec<&str> = fields(line).collect();
    if given.len() != names.len() {
        return Err(format!("{} fields, where the header has {}", given.len(), names.len()));
    }
    let field = |name: &str| {
        let value = names.iter().zip(&given).find(|(column, _)| **column == name);
        value.map(|(_, value)| *value).filter(|value| !value.is_empty())
    };
    let time = |name: &str| {
        let text = field(name).unwrap_or_default();
        parse_time(text).ok_or_else(|| format!("{name} is {text:?}, not {TIME}"))
    };
    let number = |text: &str| text.parse().ok().filter(|grams| plausible(*grams));
    Ok(Row {
        from: time("from")?,
        until: time("until")?,
        grams_per_kwh: read("grams_per_kwh", field("grams_per_kwh"), GRAMS, number)?,
        basis: read("basis", field("basis"), BASES, Basis::from_name)?.unwrap_or(Basis::UserDeclared),
        estimated: read("estimated", field("estimated"), "true or false", truth)?.unwrap_or_default(),
        accounting: read("accounting", field("accounting"), "location or market", Accounting::from_name)?
            .unwrap_or_default(),
    })
}

/// A field that may be empty, but not be nonsense.
fn read<T>(
    name: &str,
    field: Option<&str>,
    expected: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, String> {
    let parsed = |text| parse(text).ok_or_else(|| format!("{name} is {text:?}, not {expected}"));
    field.map(parsed).transpose()
}

/// Spreadsheets and pandas write `TRUE` and `True`.
fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

fn file_name(path: &Path) -> String {
    format!("file {}", path.file_name().unwrap_or(path.as_os_str()).to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(text: &str) -> Result<FileProvider, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("grid.csv");
        fs::write(&path, text).unwrap();
        // The directory goes away with this function: what is read later must be read here.
        FileProvider::open(path, Some("home".into())).map_err(|error| error.to_string())
    }

    fn read(text: &str) -> Vec<(String, f64)> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("grid.csv");
        fs::write(&path, text).unwrap();
        let values = FileProvider::open(path, None).unwrap().read().unwrap();
        values
            .into_iter()
            .map(|value| (value.period.unwrap().from.to_string(), value.grams_per_kwh.0))
            .collect()
    }

    fn hour(hour: u8, grams: f64) -> (String, f64) {
        (format!("2026-01-01T{hour:02}:00:00Z"), grams)
    }

    const CSV: &str = "# our roof\nfrom,until,grams_per_kwh\n\n2026-01-01T01:00Z,2026-01-01T02:00Z,20\n\
         2026-01-01T00:00:00Z,2026-01-01T01:00:00Z,10.5\n2026-01-01T02:00Z,2026-01-01T03:00Z,\n";

    #[test]
    fn csv_and_json_give_the_same_in_order_of_time_and_no_value_is_no_zero() {
        let json = r#"[{"from":"2026-01-01T01:00Z","until":"2026-01-01T02:00Z","grams_per_kwh":20},
            {"from":"2026-01-01T00:00:00Z","until":"2026-01-01T01:00:00Z","grams_per_kwh":10.5},
            {"from":"2026-01-01T02:00Z","until":"2026-01-01T03:00Z","grams_per_kwh":null}]"#;
        let expect = [hour(0, 10.5), hour(1, 20.0)];
        assert_eq!(read(CSV), expect);
        assert_eq!(read(json), expect);
        assert_eq!(read(&format!("\u{feff}{}", CSV.replace('\n', "\r\n"))), expect);
    }

    #[test]
    fn every_column_is_kept_in_any_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("roof.csv");
        let text = "accounting,basis,estimated,grams_per_kwh,until,from\n\
                    market,\"marginal\",True,7,2026-01-01T01:00Z,2026-01-01T00:00Z\n";
        fs::write(&path, text).unwrap();
        let value = FileProvider::open(path, None).unwrap().read().unwrap().remove(0);
        assert_eq!((value.accounting, value.basis), (Accounting::Market, Basis::Marginal));
        assert!(value.estimated);
        assert_eq!((value.zone.as_str(), value.source.as_ref()), ("roof", "file roof.csv"));
    }

    #[test]
    fn a_mistake_is_told_with_its_file_and_line() {
        let header = "from,until,grams_per_kwh,basis,estimated,accounting\n";
        let with = |row: &str| format!("{header}# note\n{row}");
        let json_times = r#""from":"2026-01-01T00:00Z","until":"2026-01-01T01:00Z""#;
        let times = "2026-01-01T00:00Z,2026-01-01T01:00Z";
        for (text, line, part) in [
            (String::new(), 1, "the file is empty"),
            ("from,until,grams\n".into(), 1, "grams_per_kwh"),
            ("from,until\n".into(), 1, "the column grams_per_kwh is missing"),
            (with(&format!("{times},5")), 3, "3 fields, where the header has 6"),
            (with(&format!("{times},five,,,")), 3, "grams_per_kwh is \"five\", not a number"),
            (with(&format!("{times},-5,,,")), 3, "0 to 5000"),
            (with(&format!("{times},NaN,,,")), 3, "0 to 5000"),
            (with(&format!("{times},5,best,,")), 3, "lifecycle_average"),
            (with(&format!("{times},5,,perhaps,")), 3, "true or false"),
            (with(&format!("{times},5,,,mine")), 3, "location or market"),
            (with("2026-01-01T00:00,2026-01-01T01:00Z,5,,,"), 3, "from is \"2026-01-01T00:00\", not a time"),
            (with("2026-01-01T01:00Z,2026-01-01T01:00Z,5,,,"), 3, "the period ends at"),
            (with(&format!("{times},5,,,\n2026-01-01T00:30Z,2026-01-01T02:00Z,5,,,")), 4, "overlaps"),
            ("[\n{\"from\":\"x\",\"until\":\"y\",\"grams_per_kwh\":5}\n]".into(), 2, "\"x\" is not a time"),
            ("[\n{\"from\":1}]".into(), 2, "expected a string"),
            (format!("[\n{{{json_times},\n\"grams_per_kwh\":-1}}]"), 3, "-1 is not a number from 0 to 5000"),
            (format!("[\n{{{json_times}}}]"), 2, "missing field `grams_per_kwh`"),
            ("[\n{\"fro\":\"x\"}]".into(), 2, "unknown field"),
            ("{\n".into(), 1, "expected a sequence"),
        ] {
            let message = open(&text).err().unwrap();
            assert!(message.contains(&format!("grid.csv, line {line}: ")), "{text}: {message}");
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_told_with_its_path() {
        let message = FileProvider::open("/no/such/grid.csv".into(), None).err().unwrap().to_string();
        assert!(message.starts_with("/no/such/grid.csv: cannot be read"), "{message}");
        let directory = tempfile::tempdir().unwrap();
        assert!(FileProvider::open(directory.path().into(), None).is_err());
    }

    /// Clocks in Germany went from 02:00 to 03:00 on 2026-03-29; the offset says which hour is meant.
    #[test]
    fn offsets_carry_over_a_change_of_the_clocks() {
        let text = "from,until,grams_per_kwh\n2026-03-29T01:00+01:00,2026-03-29T03:00+02:00,1\n\
                    2026-03-29T03:00+02:00,2026-03-29T04:00+02:00,2\n";
        assert_eq!(
            read(text),
            [("2026-03-29T00:00:00Z".to_owned(), 1.0), ("2026-03-29T01:00:00Z".to_owned(), 2.0)]
        );
    }

    #[test]
    fn the_present_and_the_last_day_are_told_and_the_file_is_read_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("grid.csv");
        fs::write(&path, CSV).unwrap();
        let mut provider = FileProvider::open(path.clone(), None).unwrap();
        let at = |wall: &str| Moment { monotonic: Duration::ZERO, wall: wall.parse().unwrap() };
        let count = |answer: Answer| answer.values.len();
        assert_eq!(count(provider.recent(at("2026-01-01T00:10:00Z")).unwrap()), 1);
        assert_eq!(count(provider.recent(at("2026-01-01T01:10:00Z")).unwrap()), 2);
        let message = provider.recent(at("2026-01-05T00:00:00Z")).unwrap_err().to_string();
        assert!(message.contains("no value for 2026-01-05T00:00Z"), "{message}");
        let more = CSV.replace("02:00Z,2026-01-01T03:00Z,", "02:00Z,2026-01-01T03:00Z,33");
        fs::write(&path, more).unwrap();
        assert_eq!(count(provider.recent(at("2026-01-01T02:10:00Z")).unwrap()), 3);
        let from: Timestamp = "2026-01-01T01:30:00Z".parse().unwrap();
        let span = Period { from, until: "2026-01-01T02:00:00Z".parse().unwrap() };
        assert_eq!(provider.history(span, at("2026-06-01T00:00:00Z")).unwrap().len(), 1);
    }

    proptest::proptest! {
        /// Files that are nearly right, with anything in place of a few characters.
        #[test]
        fn no_file_makes_it_panic(at in 0usize..200, anything in "\\PC{0,8}", json: bool) {
            let good = match json {
                true => r#"[{"from":"2026-01-01T01:00Z","until":"2026-01-01T02:00Z","grams_per_kwh":20}]"#,
                false => CSV,
            };
            let at = at % good.len();
            let text = format!("{}{anything}{}", &good[..at], &good[(at + 3).min(good.len())..]);
            if let Err(message) = open(&text) {
                proptest::prop_assert!(message.contains("grid.csv"), "{message}");
            }
        }
    }
}
