//! From a ledger to the accounts of its runs.

use std::path::Path;

use jiff::Timestamp;
use rusqlite::types::Type;
use rusqlite::{Connection, Row, params};

use super::account::{
    Account, DomainAccount, ExpertAccount, KindAccount, MarkRecord, PhaseAccount, RunReport, SegmentReport,
    WasteAccount,
};
use super::pricing;
use crate::carbon::GridIntensity;
use crate::config::EmbodiedConfig;
use crate::error::Result;
use crate::ledger::{RunStatus, open_for_reading, read_failure};
use crate::meter::Provenance;
use crate::units::{Grams, Joules, MicroJoules, Seconds};
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
    let mut account = sums(ledger, id)?;
    let mut segments = self::segments(ledger, id)?;
    for (id, segment) in &mut segments {
        segment.pue = other_pue.unwrap_or(segment.pue);
        let at_the_computer = match other_place {
            Some(place) => {
                segment.intensity = place.clone();
                place.grams_per_kwh.grams(segment.energy.joules(), 1.0)
            }
            None => pricing::grams(ledger, *id, &segment.intensities)?,
        };
        segment.grams = Grams(at_the_computer.0 * segment.pue);
        account.facility = account.facility + Joules(segment.energy.joules().0 * segment.pue);
        account.grams += segment.grams;
    }
    account.kinds = kinds(ledger, id)?;
    account.phases = phases(ledger, id)?;
    account.waste = waste(ledger, id)?;
    account.domains = domains(ledger, id)?;
    let experts = experts(ledger, id)?;
    let marks = marks(ledger, id)?;
    let final_loss = ledger.query_row(
        "SELECT (SELECT loss FROM window JOIN segment ON segment.id = segment
                 WHERE run = ?1 AND kind = ?2 AND NOT superseded AND loss NOT NULL ORDER BY step DESC LIMIT 1)",
        params![id, WindowKind::Step.as_str()],
        |row| row.get(0),
    )?;
    ledger.query_row(
        "SELECT uid, run_id, name, config_hash, status, started_ms, ended_ms FROM run WHERE id = ?1",
        [id],
        |row| {
            Ok(RunReport {
                ledger: path.to_owned(),
                uid: row.get(0)?,
                run_id: row.get(1)?,
                name: row.get(2)?,
                config_hash: row.get(3)?,
                status: named(row, 4, RunStatus::from_name)?,
                started_at: time(row, 5)?,
                ended_at: optional_time(row, 6)?,
                segments: segments.into_iter().map(|(_, segment)| segment).collect(),
                experts,
                marks,
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

/// The segments with their ids; their grams are still to come.
fn segments(ledger: &Connection, run: i64) -> rusqlite::Result<Vec<(i64, SegmentReport)>> {
    let mut statement = ledger.prepare(
        "SELECT segment.id, uid, rank, world_size, number, segment.status, resumed_from_step, host, version, pue,
                wue_l_per_kwh, embodied_kg, embodied_years, embodied_share, embodied_boundary, sensor_resets,
                sensor_spikes, gap_seconds, overhead_seconds, started_ms, segment.ended_ms,
                coalesce(sum(microjoules), 0), total(seconds)
         FROM segment LEFT JOIN window ON segment.id = segment WHERE run = ?1 GROUP BY segment.id
         ORDER BY rank, number",
    )?;
    let rows = statement.query_map([run], |row| {
        let embodied = match row.get::<_, Option<f64>>(11)? {
            Some(kg) => Some(EmbodiedConfig {
                kg,
                lifetime_years: row.get(12)?,
                share: row.get(13)?,
                boundary: row.get(14)?,
            }),
            None => None,
        };
        let sensor_health = match row.get::<_, Option<u64>>(15)? {
            Some(resets) => Some((resets, row.get(16)?, row.get(17)?)),
            None => None,
        };
        let intensities = pricing::intensities(ledger, row.get(0)?)?;
        // Entered together with the segment.
        let first = intensities.first().ok_or(rusqlite::Error::QueryReturnedNoRows)?;
        let segment = SegmentReport {
            uid: row.get(1)?,
            rank: row.get(2)?,
            world_size: row.get(3)?,
            number: row.get(4)?,
            status: named(row, 5, RunStatus::from_name)?,
            resumed_from_step: row.get(6)?,
            host: row.get(7)?,
            version: row.get(8)?,
            started_at: time(row, 19)?,
            ended_at: optional_time(row, 20)?,
            duration: Seconds(row.get(22)?),
            intensity: first.intensity.clone(),
            intensities,
            pue: row.get(9)?,
            wue_l_per_kwh: row.get(10)?,
            embodied,
            energy: MicroJoules(row.get(21)?),
            grams: Grams::default(),
            sensor_health,
            overhead: row.get::<_, Option<f64>>(18)?.map(Seconds),
        };
        Ok((row.get(0)?, segment))
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

fn phases(ledger: &Connection, run: i64) -> rusqlite::Result<Vec<PhaseAccount>> {
    let mut statement = ledger.prepare(
        "SELECT phase, total(seconds), sum(microjoules)
         FROM phase_energy JOIN segment ON segment.id = segment WHERE run = ?1
         GROUP BY phase ORDER BY 3 DESC, phase",
    )?;
    let rows = statement.query_map([run], |row| {
        Ok(PhaseAccount {
            phase: row.get(0)?,
            duration: Seconds(row.get(1)?),
            energy: MicroJoules(row.get(2)?),
        })
    })?;
    rows.collect()
}

fn waste(ledger: &Connection, run: i64) -> rusqlite::Result<Vec<WasteAccount>> {
    let mut statement = ledger.prepare(
        "SELECT reason, sum(count), sum(microjoules)
         FROM waste JOIN segment ON segment.id = segment WHERE run = ?1
         GROUP BY reason ORDER BY 3 DESC, reason",
    )?;
    let rows = statement.query_map([run], |row| {
        Ok(WasteAccount { reason: row.get(0)?, count: row.get(1)?, energy: MicroJoules(row.get(2)?) })
    })?;
    rows.collect()
}

fn experts(ledger: &Connection, run: i64) -> rusqlite::Result<Vec<ExpertAccount>> {
    let mut statement = ledger.prepare(
        "SELECT layer, expert, sum(tokens), sum(microjoules)
         FROM expert_energy JOIN segment ON segment.id = segment WHERE run = ?1
         GROUP BY layer, expert ORDER BY layer, expert",
    )?;
    let rows = statement.query_map([run], |row| {
        Ok(ExpertAccount {
            layer: row.get(0)?,
            expert: row.get(1)?,
            tokens: row.get(2)?,
            energy: MicroJoules(row.get(3)?),
        })
    })?;
    rows.collect()
}

fn marks(ledger: &Connection, run: i64) -> rusqlite::Result<Vec<MarkRecord>> {
    let mut statement = ledger.prepare(
        "SELECT at_ms, step, kind, text FROM mark JOIN segment ON segment.id = segment WHERE run = ?1 ORDER BY at_ms",
    )?;
    let rows = statement.query_map([run], |row| {
        Ok(MarkRecord { at: time(row, 0)?, step: row.get(1)?, kind: row.get(2)?, text: row.get(3)? })
    })?;
    rows.collect()
}

fn domains(ledger: &Connection, run: i64) -> rusqlite::Result<Vec<DomainAccount>> {
    let mut statement = ledger.prepare(
        "SELECT domain, sensor.sensor, source, sum(microjoules)
         FROM window_energy JOIN sensor ON sensor.id = window_energy.sensor
                            JOIN segment ON segment.id = window_energy.segment
         WHERE run = ?1 GROUP BY domain, sensor.sensor, source ORDER BY 4 DESC, domain",
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
pub(super) fn named<T>(
    row: &Row<'_>,
    column: usize,
    from_name: fn(&str) -> Option<T>,
) -> rusqlite::Result<T> {
    let name: String = row.get(column)?;
    from_name(&name).ok_or_else(|| {
        let unknown = format!("unknown name {name:?}").into();
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, unknown)
    })
}

/// A column of milliseconds since 1970.
pub(super) fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<Timestamp> {
    Timestamp::from_millisecond(row.get(column)?)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Integer, error.into()))
}

/// As [`time`], for a column that may be NULL.
pub(super) fn optional_time(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Timestamp>> {
    match row.get::<_, Option<i64>>(column)? {
        Some(_) => time(row, column).map(Some),
        None => Ok(None),
    }
}
