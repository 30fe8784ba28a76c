//! Carbon intensities that a ledger lacks, learned afterwards from a provider that knows the past.
//!
//! A segment lacks a figure for each time in which one of its windows ended and for which no measured intensity of its
//! own is known: the provider did not answer, or answered with an estimate. What is learned joins the segment as later
//! rows; nothing is changed, and what is known already is not entered again.

use std::path::Path;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::{Role, segment, store};
use crate::carbon::{Accounting, Basis, GridIntensity, Past, Period};
use crate::config::ProviderConfig;
use crate::error::Result;

/// Providers tell whole hours or parts of them: shorter spans may lie between two of their values.
const HOUR_MS: i64 = 3_600_000;

/// What has become of a ledger that was to be completed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Completion {
    /// Rows entered.
    pub num_entered: usize,
    /// Times in which windows ended and for which there is no intensity but the yearly or declared one.
    pub without: Vec<Period>,
    /// Times for which there are estimates only.
    pub estimated: Vec<Period>,
    /// Segments left alone because they may still be written.
    pub num_in_progress: usize,
}

/// Enters the intensities that a ledger lacks, as `provider` now tells them, for energy to be priced with. Touches the
/// network only when something is lacking, and not when the provider is a file.
///
/// Only the process of a segment may write it while that lasts. Segments without an end are therefore left alone, but
/// for those that began before `unwritten_at`: a moment at which the caller saw that nobody was writing the ledger.
///
/// # Errors
/// When the ledger cannot be read or written, or the provider cannot be asked or does not answer. What was learned
/// before a failure has been entered.
pub fn complete(
    run_or_file: &Path,
    provider: &ProviderConfig,
    unwritten_at: Option<Timestamp>,
) -> Result<Completion> {
    let (path, reader) = store::open_for_reading(run_or_file)?;
    let failed = |error: rusqlite::Error| store::failure(&path, "complete", &error);
    let (segments, num_in_progress) = segments(&reader, unwritten_at).map_err(failed)?;
    let lacking = |what: Lacks| -> rusqlite::Result<Vec<Span>> {
        let lacking = segments.iter().map(|segment| segment.lacking(&reader, what));
        Ok(joined(lacking.collect::<rusqlite::Result<Vec<_>>>()?.concat()))
    };
    let wanted = lacking(Lacks::Measured).map_err(failed)?;
    let mut num_entered = 0;
    if !wanted.is_empty() {
        let mut past = Past::open(provider)?;
        let mut writer = store::open_for_writing(&path)?;
        for span in joined(wanted.into_iter().map(Span::widened).collect()) {
            let values = past.fetch(span.period().map_err(failed)?)?;
            num_entered += enter(&mut writer, &segments, &values).map_err(failed)?;
        }
    }
    let periods = |spans: Vec<Span>| spans.into_iter().map(Span::period).collect::<rusqlite::Result<_>>();
    let without = lacking(Lacks::Any).map_err(failed)?;
    let unmeasured = lacking(Lacks::Measured).map_err(failed)?;
    let estimated = unmeasured.iter().flat_map(|span| span.minus(&without)).collect();
    Ok(Completion {
        num_entered,
        without: periods(without).map_err(failed)?,
        estimated: periods(estimated).map_err(failed)?,
        num_in_progress,
    })
}

/// A segment that nobody writes, and when its windows ended.
struct Segment {
    id: i64,
    span: Span,
}

/// Milliseconds since 1970, the end no part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Span {
    from_ms: i64,
    until_ms: i64,
}

/// What a time may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lacks {
    /// An intensity of its own.
    Any,
    /// One that is no estimate.
    Measured,
}

impl Segment {
    fn lacking(&self, connection: &Connection, lacks: Lacks) -> rusqlite::Result<Vec<Span>> {
        let mut statement = connection.prepare_cached(
            "SELECT from_ms, until_ms FROM intensity
             WHERE segment = ?1 AND role = 'priced' AND from_ms < until_ms AND estimated <= ?2",
        )?;
        let known = statement.query_map(params![self.id, lacks == Lacks::Any], |row| {
            Ok(Span { from_ms: row.get(0)?, until_ms: row.get(1)? })
        })?;
        Ok(self.span.minus(&joined(known.collect::<rusqlite::Result<_>>()?)))
    }
}

impl Span {
    /// What is left of it without `others`, which are in order and apart.
    fn minus(self, others: &[Span]) -> Vec<Span> {
        let mut left = Vec::new();
        let mut from_ms = self.from_ms;
        for other in others.iter().filter(|other| other.overlaps(self)) {
            left.push(Span { from_ms, until_ms: other.from_ms });
            from_ms = other.until_ms;
        }
        left.push(Span { from_ms, until_ms: self.until_ms });
        left.retain(|span| span.from_ms < span.until_ms);
        left
    }

    fn overlaps(self, other: Span) -> bool {
        self.from_ms < other.until_ms && other.from_ms < self.until_ms
    }

    /// The whole hours that it touches.
    fn widened(self) -> Self {
        let floor = |ms: i64| ms.div_euclid(HOUR_MS) * HOUR_MS;
        Span { from_ms: floor(self.from_ms), until_ms: floor(self.until_ms - 1) + HOUR_MS }
    }

    fn period(self) -> rusqlite::Result<Period> {
        let time = |ms| {
            let no_time = |error: jiff::Error| {
                rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Integer, error.into())
            };
            Timestamp::from_millisecond(ms).map_err(no_time)
        };
        Ok(Period { from: time(self.from_ms)?, until: time(self.until_ms)? })
    }
}

/// The same times in order, without overlap.
fn joined(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_unstable();
    let mut joined: Vec<Span> = Vec::new();
    for span in spans {
        match joined.last_mut().filter(|last| span.from_ms <= last.until_ms) {
            Some(last) => last.until_ms = last.until_ms.max(span.until_ms),
            None => joined.push(span),
        }
    }
    joined
}

/// The segments that nobody writes and that have windows, and how many may still be written.
fn segments(
    connection: &Connection,
    unwritten_at: Option<Timestamp>,
) -> rusqlite::Result<(Vec<Segment>, usize)> {
    let mut statement = connection.prepare(
        "SELECT id, status = 'running' AND started_ms >= ?1, min(window.ended_ms), max(window.ended_ms)
         FROM segment LEFT JOIN window ON window.segment = segment.id GROUP BY id ORDER BY id",
    )?;
    let ended_before_ms = unwritten_at.map_or(i64::MIN, Timestamp::as_millisecond);
    let rows = statement.query_map([ended_before_ms], |row| {
        let ends: (Option<i64>, Option<i64>) = (row.get(2)?, row.get(3)?);
        Ok((row.get(0)?, row.get(1)?, ends.0.zip(ends.1)))
    })?;
    let (mut segments, mut num_in_progress) = (Vec::new(), 0);
    for row in rows {
        match row? {
            (_, true, _) => num_in_progress += 1,
            (_, false, None) => {}
            (id, false, Some((first_ms, last_ms))) => {
                segments.push(Segment { id, span: Span { from_ms: first_ms, until_ms: last_ms + 1 } });
            }
        }
    }
    Ok((segments, num_in_progress))
}

/// Enters each value where it tells more than is known, and gives how many rows that were.
fn enter(
    connection: &mut Connection,
    segments: &[Segment],
    values: &[GridIntensity],
) -> rusqlite::Result<usize> {
    let learned_at = Timestamp::now();
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let mut num_entered = 0;
    for segment in segments {
        let lacking = segment.lacking(&transaction, Lacks::Measured)?;
        for (value, period) in values.iter().filter_map(|value| Some((value, value.period?))) {
            let span =
                Span { from_ms: period.from.as_millisecond(), until_ms: period.until.as_millisecond() };
            if !lacking.iter().any(|gap| gap.overlaps(span)) || is_known(&transaction, segment, span, value)?
            {
                continue;
            }
            let number = transaction.query_row(
                "SELECT coalesce(max(number), -1) + 1 FROM intensity WHERE segment = ?1",
                [segment.id],
                |row| row.get(0),
            )?;
            segment::insert_intensity(&transaction, segment.id, number, Role::Priced, value, learned_at)?;
            num_entered += 1;
        }
    }
    transaction.commit()?;
    Ok(num_entered)
}

/// Whether the newest figure for just this time says the same.
fn is_known(
    transaction: &Transaction<'_>,
    segment: &Segment,
    span: Span,
    value: &GridIntensity,
) -> rusqlite::Result<bool> {
    let mut statement = transaction.prepare_cached(
        "SELECT grams_per_kwh, zone, basis, accounting, estimated FROM intensity
         WHERE segment = ?1 AND role = 'priced' AND from_ms = ?2 AND until_ms = ?3
         ORDER BY estimated, number DESC LIMIT 1",
    )?;
    let known = statement.query_row(params![segment.id, span.from_ms, span.until_ms], |row| {
        let (basis, accounting): (String, String) = (row.get(2)?, row.get(3)?);
        Ok(row.get::<_, f64>(0)? == value.grams_per_kwh.0
            && row.get::<_, String>(1)? == value.zone
            && Basis::from_name(&basis) == Some(value.basis)
            && Accounting::from_name(&accounting) == Some(value.accounting)
            && row.get::<_, bool>(4)? == value.estimated)
    });
    Ok(known.optional()?.unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::{ask, run, step, window};
    use super::super::{FILE_NAME, Ledger, RunStatus};
    use super::*;
    use crate::Report;
    use crate::config::ProviderKind;
    use crate::report::Overrides;

    /// A ledger of two windows that ended an hour apart, and a file of intensities.
    struct Bench {
        directory: tempfile::TempDir,
        ended: Timestamp,
    }

    impl Bench {
        fn new(status: Option<RunStatus>) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join(FILE_NAME);
            let mut ledger = Ledger::open(&path, &run(None)).unwrap();
            ledger.record(&window(0, 3_600_000_000_000), step(1)).unwrap();
            ledger.record(&window(1, 3_600_000_000_000), step(2)).unwrap();
            match status {
                Some(status) => drop(ledger.finish(status, None).unwrap()),
                None => drop(ledger),
            }
            let ended = Timestamp::from_second(1_700_000_000).unwrap();
            let bench = Bench { directory, ended };
            for (seq, hours) in [(0, 1), (1, 0)] {
                let at = ended - Duration::from_secs(3600 * hours);
                let sql = "UPDATE window SET ended_ms = ?1 WHERE seq = ?2";
                bench.connection().execute(sql, params![at.as_millisecond(), seq]).unwrap();
            }
            bench
        }

        fn path(&self) -> std::path::PathBuf {
            self.directory.path().join(FILE_NAME)
        }

        fn connection(&self) -> Connection {
            Connection::open(self.path()).unwrap()
        }

        /// Writes the intensities: hours before the end, grams, estimated.
        fn tell(&self, rows: &[(u64, &str, bool)]) -> ProviderConfig {
            let mut text = "from,until,grams_per_kwh,estimated\n".to_owned();
            for (hours, grams, estimated) in rows {
                let middle = self.ended - Duration::from_secs(3600 * hours);
                let half = Duration::from_secs(1800);
                text += &format!("{},{},{grams},{estimated}\n", middle - half, middle + half);
            }
            let path = self.directory.path().join("grid.csv");
            std::fs::write(&path, text).unwrap();
            let kind = ProviderKind::File;
            ProviderConfig { kind, zone: None, url: None, path: Some(path), stale_after_minutes: 120 }
        }

        fn complete(&self, provider: &ProviderConfig) -> Completion {
            complete(self.directory.path(), provider, None).unwrap()
        }

        fn grams(&self) -> f64 {
            let report = Report::from_ledgers(&[self.path()], &Overrides::default()).unwrap();
            report.total().grams.0
        }
    }

    #[test]
    fn what_is_lacking_is_learned_once_and_prices_the_energy_of_its_time() {
        let bench = Bench::new(Some(RunStatus::Completed));
        let provider = bench.tell(&[(1, "100", false), (0, "300", false)]);
        let before = bench.grams();
        let first = bench.complete(&provider);
        assert_eq!((first.num_entered, first.without.len(), first.estimated.len()), (2, 0, 0));
        assert!((bench.grams() - 400.0).abs() < 1e-6 && before != 400.0, "{before} then {}", bench.grams());
        // Nothing is lacking: the provider is not even asked.
        std::fs::remove_file(provider.path.as_ref().unwrap()).unwrap();
        assert_eq!(bench.complete(&provider), Completion::default());
        assert_eq!(ask(&bench.path(), "SELECT count(*) FROM intensity"), 3);
        assert_eq!(ask(&bench.path(), "SELECT max(number) FROM intensity"), 2);
    }

    #[test]
    fn what_the_provider_does_not_know_is_told_and_estimates_are_asked_for_again() {
        let bench = Bench::new(Some(RunStatus::Failed));
        let provider = bench.tell(&[(1, "", false), (0, "300", true)]);
        let partly = bench.complete(&provider);
        assert_eq!(partly.num_entered, 1);
        let half_an_hour = Duration::from_secs(1800);
        let hour_ago = bench.ended - Duration::from_secs(3600);
        assert_eq!(partly.without, [Period { from: hour_ago, until: bench.ended - half_an_hour }]);
        assert_eq!(partly.estimated.len(), 1);
        let same = bench.complete(&provider);
        assert_eq!(same, Completion { num_entered: 0, ..partly });
        let better = bench.complete(&bench.tell(&[(1, "100", false), (0, "200", false)]));
        assert_eq!(better, Completion { num_entered: 2, ..Completion::default() });
        assert!((bench.grams() - 300.0).abs() < 1e-6, "{}", bench.grams());
    }

    #[test]
    fn an_estimate_that_changes_back_is_a_correction_too() {
        let bench = Bench::new(Some(RunStatus::Completed));
        for (grams, entered) in [("300", 2), ("310", 2), ("310", 0), ("300", 2)] {
            let provider = bench.tell(&[(1, grams, true), (0, grams, true)]);
            assert_eq!(bench.complete(&provider).num_entered, entered);
            assert!((bench.grams() - 2.0 * grams.parse::<f64>().unwrap()).abs() < 1e-6);
        }
    }

    #[test]
    fn a_segment_that_may_still_be_written_is_left_alone() {
        let bench = Bench::new(None);
        let provider = bench.tell(&[(1, "100", false), (0, "300", false)]);
        let begun = ask(&bench.path(), "SELECT started_ms FROM segment");
        let at = |ms| Timestamp::from_millisecond(ms).unwrap();
        for unwritten_at in [None, Some(at(begun))] {
            let left = complete(&bench.path(), &provider, unwritten_at).unwrap();
            assert_eq!(left, Completion { num_in_progress: 1, ..Completion::default() });
        }
        let done = complete(&bench.path(), &provider, Some(at(begun + 1))).unwrap();
        assert_eq!((done.num_entered, done.num_in_progress), (2, 0));
    }

    #[test]
    fn a_failure_is_told_with_the_provider_and_a_file_that_is_no_ledger_is_left_as_it_is() {
        let bench = Bench::new(Some(RunStatus::Completed));
        let provider = bench.tell(&[(0, "300", false)]);
        std::fs::write(provider.path.as_ref().unwrap(), "from,until\n").unwrap();
        let error = complete(&bench.path(), &provider, None).unwrap_err().to_string();
        assert!(error.contains("grid.csv, line 1: the column grams_per_kwh is missing"), "{error}");
        let other = bench.directory.path().join("other");
        std::fs::write(&other, "no ledger").unwrap();
        let error = complete(&other, &provider, None).unwrap_err().to_string();
        assert!(error.contains("no ledger"), "{error}");
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "no ledger");
    }

    #[test]
    fn spans_are_cut_joined_and_widened_to_whole_hours() {
        let span = |from_ms, until_ms| Span { from_ms, until_ms };
        let known = joined(vec![span(30, 40), span(10, 20), span(15, 25)]);
        assert_eq!(known, [span(10, 25), span(30, 40)]);
        assert_eq!(span(0, 50).minus(&known), [span(0, 10), span(25, 30), span(40, 50)]);
        assert_eq!(span(12, 35).minus(&known), [span(25, 30)]);
        assert_eq!(span(12, 20).minus(&known), []);
        assert_eq!(span(HOUR_MS + 1, HOUR_MS * 2).widened(), span(HOUR_MS, HOUR_MS * 2));
        assert_eq!(span(HOUR_MS * 2, HOUR_MS * 2 + 1).widened(), span(HOUR_MS * 2, HOUR_MS * 3));
    }
}
