//! Recorded sensor traces as files, so that a run's sensors can be played back where there are none.
//!
//! A file is JSON, one value a line. The first line names the format, the next ones each a domain, and all further
//! ones a reading: the domain's number, nanoseconds since the start, and the counter in microjoules, or `null`
//! where it could not be read. Domains without an update period are fresh at every reading.
//!
//! ```text
//! {"format":"wattle-trace","version":1}
//! {"domain":"package-0","range_uj":262143328850,"max_watts":1000.0,"update_slack_ns":50000000,"update_period_ns":0}
//! {"domain":"gpu-0","range_uj":null,"max_watts":null,"update_slack_ns":0,"update_period_ns":1000000000}
//! [0,0,120000]
//! [1,0,55000]
//! [0,100000000,5120000]
//! [1,100000000,null]
//! ```
//!
//! `range_uj` is the counter's largest value before it wraps (`null`: never), `max_watts` the most it can draw
//! (`null`: no limit), `update_slack_ns` the longest time between two of its updates. A monitor records what its
//! meters make of their counters, in which wraps are settled, so its files have neither range nor limit.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::replay::{ReplayMeter, Trace};
use super::{Domain, MeterError, MeterErrorKind, Plausible};
use crate::units::Watts;

const FORMAT: &str = "wattle-trace";
const VERSION: u32 = 1;

/// No line of a trace is longer; a longer one is no trace, and is not read to its end.
const LONGEST_LINE: u64 = 4096;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    format: String,
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DomainLine {
    domain: String,
    range_uj: Option<u64>,
    max_watts: Option<f64>,
    update_slack_ns: u64,
    update_period_ns: u64,
}

/// A domain's number, nanoseconds and microjoules.
#[derive(Serialize, Deserialize)]
struct Point(usize, u64, Option<u64>);

/// Reads a file and gives meters that play it: one for all domains with the same update period.
///
/// # Errors
/// `Gone` when there is no such file; `Fatal` when it cannot be read or is damaged, with the line and what was
/// expected there.
pub fn read(path: &Path) -> Result<Vec<ReplayMeter>, MeterError> {
    let file = File::open(path).map_err(|error| {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => MeterErrorKind::Gone,
            _ => MeterErrorKind::Fatal,
        };
        let message = format!("{}: {error}", path.display());
        MeterError { sensor: "replay", kind, message, remedy: "set energy.trace to a recorded trace".into() }
    })?;
    let mut reader = TraceReader::default();
    let mut lines = BufReader::new(file);
    let mut line = Vec::new();
    for number in 1u64.. {
        line.clear();
        let read = (&mut lines).take(LONGEST_LINE).read_until(b'\n', &mut line);
        let taken = match read {
            Ok(0) => break,
            Ok(length) if length as u64 == LONGEST_LINE => Err("is longer than 4096 bytes".into()),
            Ok(_) => reader.take(&line),
            Err(error) => Err(error.to_string()),
        };
        taken.map_err(|reason| damaged(format!("{}:{number}: {reason}", path.display())))?;
    }
    reader.meters().map_err(|reason| damaged(format!("{}: {reason}", path.display())))
}

/// What is wrong with a replay that names no trace.
pub(super) fn unnamed() -> MeterError {
    MeterError {
        sensor: "replay",
        kind: MeterErrorKind::Fatal,
        message: "energy.trace is not set".into(),
        remedy: "set it to a recorded trace".into(),
    }
}

#[derive(Default)]
struct TraceReader {
    has_head: bool,
    domains: Vec<(Trace, Duration)>,
}

impl TraceReader {
    /// Takes one line, or says what is wrong with it.
    fn take(&mut self, line: &[u8]) -> Result<(), String> {
        if line.trim_ascii().is_empty() {
            return Err("is empty".into());
        }
        if !self.has_head {
            let head: Head = parse(line, r#"{"format":"wattle-trace","version":1}"#)?;
            if head.format != FORMAT {
                return Err(format!("the format is {:?}, expected {FORMAT:?}", head.format));
            }
            if head.version != VERSION {
                return Err(format!("the version is {}, this program reads {VERSION}", head.version));
            }
            self.has_head = true;
            return Ok(());
        }
        if line.trim_ascii_start().starts_with(b"{") {
            return self.take_domain(parse(line, "a domain")?);
        }
        self.take_point(parse(line, "a reading [domain, nanoseconds, microjoules or null]")?)
    }

    fn take_domain(&mut self, line: DomainLine) -> Result<(), String> {
        if self.domains.iter().any(|(trace, _)| trace.domain == line.domain) {
            return Err(format!("the domain {:?} is there twice", line.domain));
        }
        if self.domains.iter().any(|(trace, _)| !trace.points.is_empty()) {
            return Err(format!("the domain {:?} comes after the first reading", line.domain));
        }
        if line.range_uj == Some(0) {
            return Err("range_uj is 0, expected above 0 or null".into());
        }
        if let Some(watts) = line.max_watts.filter(|watts| !(*watts > 0.0 && watts.is_finite())) {
            return Err(format!("max_watts is {watts}, expected above 0 or null"));
        }
        let trace = Trace {
            domain: line.domain,
            range: line.range_uj,
            plausible: Plausible {
                max_watts: Watts(line.max_watts.unwrap_or(f64::INFINITY)),
                update_slack: Duration::from_nanos(line.update_slack_ns),
            },
            points: Vec::new(),
        };
        self.domains.push((trace, Duration::from_nanos(line.update_period_ns)));
        Ok(())
    }

    fn take_point(&mut self, Point(domain, nanos, raw): Point) -> Result<(), String> {
        let count = self.domains.len();
        let Some((trace, _)) = self.domains.get_mut(domain) else {
            return Err(format!("there is no domain {domain}, the file has {count}"));
        };
        let at = Duration::from_nanos(nanos);
        if let Some((before, _)) = trace.points.last().filter(|(before, _)| *before > at) {
            return Err(format!("the time {nanos} ns is before {} ns of the same domain", before.as_nanos()));
        }
        if let Some(range) = trace.range.filter(|range| raw.is_some_and(|raw| raw > *range)) {
            return Err(format!("the value is above the range of {range} uJ"));
        }
        trace.points.push((at, raw));
        Ok(())
    }

    fn meters(self) -> Result<Vec<ReplayMeter>, String> {
        if !self.has_head {
            return Err("is empty".into());
        }
        if let Some((trace, _)) = self.domains.iter().find(|(trace, _)| trace.points.is_empty()) {
            return Err(format!("the domain {:?} has no readings", trace.domain));
        }
        let mut periods: Vec<(Duration, Vec<Trace>)> = Vec::new();
        for (trace, period) in self.domains {
            match periods.iter_mut().find(|(other, _)| *other == period) {
                Some((_, traces)) => traces.push(trace),
                None => periods.push((period, vec![trace])),
            }
        }
        Ok(periods.into_iter().map(|(period, traces)| ReplayMeter::new(traces, period)).collect())
    }
}

fn parse<'a, T: Deserialize<'a>>(line: &'a [u8], expected: &str) -> Result<T, String> {
    serde_json::from_slice(line).map_err(|error| format!("{error}; expected {expected}"))
}

fn damaged(message: String) -> MeterError {
    MeterError {
        sensor: "replay",
        kind: MeterErrorKind::Fatal,
        message,
        remedy: "the trace is damaged: record it again, or cut it before that line".into(),
    }
}

/// Writes a trace while a monitor runs. Each reading is one write, so that a kill leaves whole lines.
#[derive(Debug)]
pub(crate) struct TraceWriter {
    path: PathBuf,
    file: File,
    lines: Vec<u8>,
}

impl TraceWriter {
    /// Creates the file for these domains, each with how often it has news.
    pub(crate) fn create<'a>(
        path: PathBuf,
        domains: impl Iterator<Item = (&'a Domain, Duration)>,
    ) -> Result<Self, MeterError> {
        let file = File::create(&path).map_err(|error| unwritable(&path, &error))?;
        let mut writer = TraceWriter { path, file, lines: Vec::new() };
        writer.line(&Head { format: FORMAT.into(), version: VERSION })?;
        for (domain, period) in domains {
            writer.line(&DomainLine {
                domain: domain.name.as_ref().into(),
                range_uj: None,
                max_watts: None,
                update_slack_ns: 0,
                update_period_ns: nanos(period),
            })?;
        }
        writer.flush()?;
        Ok(writer)
    }

    /// Writes readings: the domain's number, the time since the start, microjoules.
    pub(crate) fn write(
        &mut self,
        points: impl Iterator<Item = (usize, Duration, Option<u64>)>,
    ) -> Result<(), MeterError> {
        for (domain, at, raw) in points {
            self.line(&Point(domain, nanos(at), raw))?;
        }
        self.flush()
    }

    fn line(&mut self, line: &impl Serialize) -> Result<(), MeterError> {
        serde_json::to_writer(&mut self.lines, line)
            .map_err(|error| unwritable(&self.path, &error.into()))?;
        self.lines.push(b'\n');
        Ok(())
    }

    fn flush(&mut self) -> Result<(), MeterError> {
        let written = self.file.write_all(&self.lines);
        self.lines.clear();
        written.map_err(|error| unwritable(&self.path, &error))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn unwritable(path: &Path, error: &std::io::Error) -> MeterError {
    MeterError {
        sensor: "trace",
        kind: MeterErrorKind::Fatal,
        message: format!("{}: the recording cannot be written: {error}", path.display()),
        remedy: "record to a place with room that may be written".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::Meter;
    use crate::units::MicroJoules;
    use proptest::prelude::*;

    const HEAD: &str = r#"{"format":"wattle-trace","version":1}"#;
    const PACKAGE: &str =
        r#"{"domain":"p","range_uj":99,"max_watts":10.0,"update_slack_ns":0,"update_period_ns":0}"#;

    fn read_text(text: impl AsRef<[u8]>) -> Result<Vec<ReplayMeter>, MeterError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read(file.path())
    }

    #[test]
    fn a_file_written_by_hand_is_played_with_its_wraps() {
        let text = format!("{HEAD}\n{PACKAGE}\n[0,0,90]\n[0,1000000000,9]\n[0,2000000000,null]\n");
        let mut meter = read_text(text).unwrap().remove(0);
        assert_eq!(meter.domains()[0].name.as_ref(), "p");
        meter.read(Duration::ZERO).unwrap();
        let reading = meter.read(Duration::from_secs(1)).unwrap();
        assert_eq!(reading.cumulative, [MicroJoules(19)]);
        assert_eq!(meter.read(Duration::from_secs(2)).unwrap_err().kind, MeterErrorKind::Retry);
    }

    #[test]
    fn domains_of_different_pace_are_played_by_meters_of_their_own() {
        let slow = PACKAGE.replace("\"p\"", "\"q\"").replace("period_ns\":0", "period_ns\":1000000000");
        let meters = read_text(format!("{HEAD}\n{PACKAGE}\n{slow}\n[0,0,1]\n[1,0,1]\n")).unwrap();
        let periods: Vec<Duration> = meters.iter().map(Meter::update_period).collect();
        assert_eq!(periods, [Duration::ZERO, Duration::from_secs(1)]);
    }

    #[test]
    fn damage_is_told_with_its_line() {
        let with = |line: &str| format!("{HEAD}\n{PACKAGE}\n[0,5,1]\n{line}\n");
        for (text, expect) in [
            (String::new(), "is empty"),
            ("{\"format\":\"other\",\"version\":1}\n".into(), ":1: the format is \"other\""),
            ("{\"format\":\"wattle-trace\",\"version\":2}\n".into(), ":1: the version is 2"),
            ("SQLite format 3\0".into(), ":1: expected value"),
            (format!("{HEAD}\n{PACKAGE}\n"), "\"p\" has no readings"),
            (format!("{HEAD}\n{PACKAGE}\n{PACKAGE}\n"), ":3: the domain \"p\" is there twice"),
            (format!("{HEAD}\n{}\n", PACKAGE.replace("10.0", "-1.0")), ":2: max_watts is -1"),
            (format!("{HEAD}\n{}\n", PACKAGE.replace("99", "0")), ":2: range_uj is 0"),
            (with(&PACKAGE.replace("\"p\"", "\"q\"")), ":4: the domain \"q\" comes after"),
            (with("[1,6,1]"), ":4: there is no domain 1, the file has 1"),
            (with("[0,4,1]"), ":4: the time 4 ns is before 5 ns"),
            (with("[0,6,100]"), ":4: the value is above the range of 99 uJ"),
            (with("[0,6,-3]"), ":4: invalid value: integer `-3`"),
            (with("[0,6"), ":4: EOF"),
            (with(""), ":4: is empty"),
            (with(&"[".repeat(5000)), ":4: is longer than 4096 bytes"),
        ] {
            let error = read_text(&text).unwrap_err();
            assert!(error.message.contains(expect), "{expect}: {error}");
            assert_eq!(error.kind, MeterErrorKind::Fatal);
        }
        assert_eq!(read(Path::new("no-such.trace")).unwrap_err().kind, MeterErrorKind::Gone);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            at in 0usize..200,
        ) {
            let mut text = format!("{HEAD}\n{PACKAGE}\n[0,0,90]\n[0,1000000000,9]\n").into_bytes();
            let at = at.min(text.len());
            text.splice(at..at, bytes.iter().copied().take(3));
            // Damaged or not, it is an answer.
            let mut reader = TraceReader::default();
            let _ = text.split_inclusive(|byte| *byte == b'\n').try_for_each(|line| reader.take(line));
            let mut reader = TraceReader::default();
            prop_assert!(reader.take(&bytes).is_err());
        }
    }
}
