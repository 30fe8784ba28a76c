//! From a ledger to the accounts of its runs.

use std::path::Path;

use rusqlite::types::Type;
use rusqlite::{Connection, Row, params};

use super::{Account, DomainAccount, KindAccount, RunReport, SegmentReport};
use crate::carbon::{Basis, GridIntensity};
use crate::error::Result;
use crate::ledger::{RunStatus, open_for_reading, read_failure};
use crate::meter::Provenance;
use crate::units::{Grams, GramsPerKilowattHour, Joules, MicroJoules, Seconds};
use crate::window::WindowKind;

/// All runs of one ledger, with another place or PUE where given.
pub(super) fn runs(
    run_or_file: &Path,
    other_place: Option<&GridIntensity>,
    other_pue: Option<f64>,
) -> Result<Vec<RunReport>> {
    let (path, mut connection) = open_for_reading(run_or_file)?;
    let read = |connection: &mut Connection| -> rusqlite::Result<Vec<RunReport>> {
        // One transaction: the numbers agree with each other while a run goes on writing.
        let snapshot = connection.transaction()?;
        let mut ids = snapshot.prepare("SELECT id FROM run ORDER BY id")?;
        let ids = ids.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<i64>>>()?;
        ids.into_iter().map(|id| run(&snapshot, &path, id, other_place, other_pue)).collect()
    };
    read(&mut connection).map_err(|error| read_failure(&path, &error))
}

fn run(
    ledger: &Connection,
    path: &Path,
    id: i64,
    other_place: Option<&GridIntensity>,
    other_pue: Option<f64>,
) -> rusqlite::Result<RunReport> {
    let mut segments = Vec::new();
    let mut account = sums(ledger, id)?;
    for (segment, stored_grams) in self::segments(ledger, id)? {
        let recounted = other_place.is_some() || other_pue.is_some();
        let segment = SegmentReport {
            intensity: other_place.cloned().unwrap_or(segment.intensity),
            pue: other_pue.unwrap_or(segment.pue),
            ..segment
        };
        let energy = segment.energy.joules();
        account.facility = account.facility + Joules(energy.0 * segment.pue);
        account.grams += match recounted {
            true => segment.intensity.grams_per_kwh.grams(energy, segment.pue),
            false => stored_grams,
        };
        segments.push(segment);
    }
    account.kinds = kinds(ledger, id)?;
    account.domains = domains(ledger, id)?;
    let final_loss = ledger.query_row(
        "SELECT (SELECT loss FROM window JOIN segment ON segment.id = segment
                 WHERE run = ?1 AND kind = ?2 AND NOT superseded AND loss NOT NULL ORDER BY step DESC LIMIT 1)",
        params![id, WindowKind::Step.as_str()],
        |row| row.get(0),
    )?;
    ledger.query_row(
        "SELECT run_id, name, config_hash, status, started_at, ended_at FROM run WHERE id = ?1",
        [id],
        |row| {
            Ok(RunReport {
                ledger: path.to_owned(),
                run_id: row.get(0)?,
                name: row.get(1)?,
                config_hash: row.get(2)?,
                status: named(row, 3, RunStatus::from_name)?,
                started_at: row.get(4)?,
                ended_at: row.get(5)?,
                segments,
                account,
                final_loss,
            })
        },
    )
}

fn sums(ledger: &Connection, run: i64) -> rusqlite::Result<Account> {
    ledger.query_row(
        "SELECT total(seconds),
                count(DISTINCT CASE WHEN kind = ?2 AND NOT superseded THEN step END),
                coalesce(sum(CASE WHEN NOT superseded THEN tokens END), 0),
                coalesce(sum(microjoules), 0),
                coalesce(sum(CASE WHEN superseded THEN microjoules END), 0),
                coalesce(sum(NOT complete), 0)
         FROM window JOIN segment ON segment.id = segment WHERE run = ?1",
        params![run, WindowKind::Step.as_str()],
        |row| {
            Ok(Account {
                duration: Seconds(row.get(0)?),
                steps: row.get(1)?,
                tokens: row.get(2)?,
                energy: MicroJoules(row.get(3)?),
                superseded: MicroJoules(row.get(4)?),
                incomplete_windows: row.get(5)?,
                ..Account::default()
            })
        },
    )
}

/// The segments as they were counted, with the grams they were counted at.
fn segments(ledger: &Connection, run: i64) -> rusqlite::Result<Vec<(SegmentReport, Grams)>> {
    let mut statement = ledger.prepare(
        "SELECT number, segment.status, resumed_from_step, host, location, grams_per_kwh, intensity_year,
                intensity_basis, intensity_source, pue, coalesce(sum(microjoules), 0), total(grams)
         FROM segment LEFT JOIN window ON segment.id = segment WHERE run = ?1 GROUP BY segment.id ORDER BY number",
    )?;
    let rows = statement.query_map([run], |row| {
        let intensity = GridIntensity {
            zone: row.get(4)?,
            grams_per_kwh: GramsPerKilowattHour(row.get(5)?),
            year: row.get(6)?,
            basis: named(row, 7, Basis::from_name)?,
            source: row.get::<_, String>(8)?.into(),
        };
        let segment = SegmentReport {
            number: row.get(0)?,
            status: named(row, 1, RunStatus::from_name)?,
            resumed_from_step: row.get(2)?,
            host: row.get(3)?,
            intensity,
            pue: row.get(9)?,
            energy: MicroJoules(row.get(10)?),
        };
        Ok((segment, Grams(row.get(11)?)))
    })?;
    rows.collect()
}

fn kinds(ledger: &Connection, run: i64) -> rusqlite::Result<Vec<KindAccount>> {
    let mut statement = ledger.prepare(
        "SELECT kind, count(*), total(seconds), coalesce(sum(microjoules), 0)
         FROM window JOIN segment ON segment.id = segment WHERE run = ?1
         GROUP BY kind ORDER BY 4 DESC, kind",
    )?;
    let rows = statement.query_map([run], |row| {
        Ok(KindAccount {
            kind: row.get(0)?,
            windows: row.get(1)?,
            duration: Seconds(row.get(2)?),
            energy: MicroJoules(row.get(3)?),
        })
    })?;
    rows.collect()
}

fn domains(ledger: &Connection, run: i64) -> rusqlite::Result<Vec<DomainAccount>> {
    let mut statement = ledger.prepare(
        "SELECT domain, sensor, source, sum(microjoules)
         FROM window_energy JOIN segment ON segment.id = segment WHERE run = ?1
         GROUP BY domain, sensor, source ORDER BY 4 DESC, domain",
    )?;
    let rows = statement.query_map([run], |row| {
        Ok(DomainAccount {
            domain: row.get(0)?,
            sensor: row.get(1)?,
            source: named(row, 2, Provenance::from_name)?,
            energy: MicroJoules(row.get(3)?),
        })
    })?;
    rows.collect()
}

/// A column that holds one of a fixed set of names.
fn named<T>(row: &Row<'_>, column: usize, from_name: fn(&str) -> Option<T>) -> rusqlite::Result<T> {
    let name: String = row.get(column)?;
    from_name(&name).ok_or_else(|| {
        let unknown = format!("unknown name {name:?}").into();
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, unknown)
    })
}
