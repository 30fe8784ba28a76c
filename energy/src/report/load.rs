//! From a ledger to its segments, each with its sums.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rusqlite::types::Type;
use rusqlite::{Connection, Row};

use super::account::{ExpertAccount, SensorHealth, WeekAccount};
use super::pricing::{self, Prices};
use super::run::{MarkRecord, SegmentReport};
use super::{Account, sci, sums};
use crate::carbon::GridIntensity;
use crate::config::EmbodiedConfig;
use crate::error::{Error, Result};
use crate::ledger::{RunStatus, open_for_reading, read_failure};
use crate::units::Seconds;

/// What stands in place of the figures a run was counted with.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Assumptions<'a> {
    pub(super) place: Option<&'a GridIntensity>,
    pub(super) pue: Option<f64>,
}

/// A run as its row in a ledger has it.
#[derive(Clone, Debug)]
pub(super) struct RunRow {
    pub(super) ledger: PathBuf,
    pub(super) uid: String,
    pub(super) run_id: String,
    pub(super) name: String,
    pub(super) config_hash: String,
    pub(super) status: RunStatus,
    pub(super) started_at: Timestamp,
    pub(super) ended_at: Option<Timestamp>,
    pub(super) segments: Vec<Segment>,
}

/// A segment with its sums.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) report: SegmentReport,
    pub(super) alive_at: Option<Timestamp>,
    pub(super) account: Account,
    pub(super) weeks: Vec<WeekAccount>,
    pub(super) experts: Vec<ExpertAccount>,
    pub(super) marks: Vec<MarkRecord>,
    pub(super) last_loss: Option<(u64, f64)>,
}

/// All runs of one ledger.
pub(super) fn runs(run_or_file: &Path, assumptions: Assumptions<'_>) -> Result<Vec<RunRow>> {
    let (path, mut connection) = open_for_reading(run_or_file).map_err(|error| match error {
        Error::Ledger { path, .. } if path.metadata().is_ok_and(|file| file.len() == 0) => Error::Ledger {
            path,
            action: "read",
            reason: "the file is empty".into(),
            remedy: "it was never a ledger, or all of it is lost: restore it, or move it away",
        },
        other => other,
    })?;
    read_all(&mut connection, &path, assumptions).map_err(|error| read_failure(&path, &error))
}

fn read_all(
    connection: &mut Connection,
    path: &Path,
    assumptions: Assumptions<'_>,
) -> rusqlite::Result<Vec<RunRow>> {
    // Mapped pages need not be copied. Where the system maps none, they are.
    connection.pragma_update(None, "mmap_size", MAPPED_BYTES)?;
    // One transaction: the numbers agree with each other while a run goes on writing.
    let snapshot = connection.transaction()?;
    let mut statement = snapshot.prepare(
        "SELECT id, uid, run_id, name, config_hash, status, started_ms, ended_ms FROM run ORDER BY id",
    )?;
    let rows = statement.query_map([], |row| {
        let run = RunRow {
            ledger: path.to_owned(),
            uid: row.get(1)?,
            run_id: row.get(2)?,
            name: row.get(3)?,
            config_hash: row.get(4)?,
            status: named(row, 5, RunStatus::from_name)?,
            started_at: time(row, 6)?,
            ended_at: optional_time(row, 7)?,
            segments: Vec::new(),
        };
        Ok((row.get(0)?, run))
    })?;
    let runs = rows.collect::<rusqlite::Result<Vec<(i64, RunRow)>>>()?;
    let with_segments = runs.into_iter().map(|(id, run)| {
        let segments = segments(&snapshot, id, path, assumptions)?;
        Ok(RunRow { segments, ..run })
    });
    with_segments.collect()
}

/// The most of a ledger that is mapped at once.
const MAPPED_BYTES: i64 = 128 << 20;

fn segments(
    ledger: &Connection,
    run: i64,
    path: &Path,
    assumptions: Assumptions<'_>,
) -> rusqlite::Result<Vec<Segment>> {
    let mut statement = ledger.prepare(
        "SELECT id, uid, rank, world_size, number, status, resumed_from_step, host, version, pue, wue_l_per_kwh,
                embodied_kg, embodied_years, embodied_share, embodied_boundary, sensor_resets, sensor_spikes,
                gap_seconds, overhead_seconds, started_ms, ended_ms, alive_ms
         FROM segment WHERE run = ?1 ORDER BY rank, number",
    )?;
    let rows = statement.query_map([run], |row| segment(ledger, row, path, assumptions))?;
    rows.collect()
}

fn segment(
    ledger: &Connection,
    row: &Row<'_>,
    path: &Path,
    assumptions: Assumptions<'_>,
) -> rusqlite::Result<Segment> {
    let id: i64 = row.get(0)?;
    let intensities = pricing::intensities(ledger, id)?;
    // Entered together with the segment.
    let first = intensities.first().ok_or(rusqlite::Error::QueryReturnedNoRows)?;
    let intensity = assumptions.place.unwrap_or(&first.intensity).clone();
    let pue = assumptions.pue.map_or_else(|| row.get(9), Ok)?;
    let prices = Prices::new(&intensities, assumptions.place);
    let sums::Sums { mut account, weeks, experts, last_loss } = sums::of_segment(ledger, id, &prices, pue)?;
    let wue_l_per_kwh: Option<f64> = row.get(10)?;
    let embodied = embodied(row)?;
    account.bases = match assumptions.place {
        Some(place) => vec![(place.basis, place.accounting)],
        None => pricing::bases(&intensities),
    };
    account.water_liters = wue_l_per_kwh.map(|wue| wue * account.energy.joules().kilowatt_hours());
    account.embodied = embodied.as_ref().map(|embodied| sci::embodied_share(embodied, account.duration));
    let sensor_health = match row.get::<_, Option<u64>>(15)? {
        Some(resets) => Some((resets, row.get(16)?, row.get::<_, f64>(17)?)),
        None => None,
    };
    let overhead = row.get::<_, Option<f64>>(18)?.map(Seconds);
    account.sensors = sensors(sensor_health, overhead);
    let report = SegmentReport {
        ledger: path.to_owned(),
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
        duration: account.duration,
        intensity,
        intensities,
        pue,
        wue_l_per_kwh,
        embodied,
        energy: account.energy,
        grams: account.grams,
        sensor_health,
        overhead,
    };
    let alive_at = optional_time(row, 21)?;
    Ok(Segment { report, alive_at, account, weeks, experts, marks: marks(ledger, id)?, last_loss })
}

fn embodied(row: &Row<'_>) -> rusqlite::Result<Option<EmbodiedConfig>> {
    let Some(kg) = row.get(11)? else { return Ok(None) };
    Ok(Some(EmbodiedConfig { kg, lifetime_years: row.get(12)?, share: row.get(13)?, boundary: row.get(14)? }))
}

fn sensors(health: Option<(u64, u64, f64)>, overhead: Option<Seconds>) -> SensorHealth {
    let (resets, spikes, gap_seconds) = health.unwrap_or_default();
    SensorHealth {
        resets,
        spikes,
        gap: Seconds(gap_seconds),
        overhead: overhead.unwrap_or_default(),
        untold: u64::from(health.is_none()),
    }
}

fn marks(ledger: &Connection, segment: i64) -> rusqlite::Result<Vec<MarkRecord>> {
    let mut statement = ledger
        .prepare("SELECT at_ms, step, kind, text FROM mark WHERE segment = ?1 ORDER BY at_ms, number")?;
    let rows = statement.query_map([segment], |row| {
        Ok(MarkRecord { at: time(row, 0)?, step: row.get(1)?, kind: row.get(2)?, text: row.get(3)? })
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
