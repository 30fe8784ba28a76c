//! The begin and the end of a segment: one process lifetime in the ledger.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::{Role, RunInfo, RunStatus, Spent};
use crate::carbon::GridIntensity;
use crate::units::{Grams, MicroJoules};
use crate::window::EnergyTotals;

/// A segment that has begun.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) segment: i64,
    /// What earlier segments of the run have spent.
    pub(super) before: Spent,
}

/// How a segment ended.
#[derive(Debug)]
pub(super) struct Ending {
    status: RunStatus,
    at: Timestamp,
    sensors: Option<SensorHealth>,
    /// CPU time of counting, without the writer's own.
    overhead: Duration,
}

#[derive(Debug)]
struct SensorHealth {
    resets: u64,
    spikes: u64,
    gap_seconds: f64,
}

impl Ending {
    pub(super) fn new(status: RunStatus, totals: Option<&EnergyTotals>, recording_cpu: Duration) -> Self {
        let monitor_cpu =
            totals.map_or(Duration::ZERO, |totals| totals.overhead.sampler_cpu + totals.overhead.closing_cpu);
        Ending {
            status,
            at: Timestamp::now(),
            sensors: totals.map(|totals| SensorHealth {
                resets: totals.resets,
                spikes: totals.spikes,
                gap_seconds: totals.gap.0,
            }),
            overhead: monitor_cpu + recording_cpu,
        }
    }
}

/// Enters the run, if new, and a new segment of it; settles what earlier processes left open and sums what they
/// have spent.
pub(super) fn begin(connection: &mut Connection, run: &RunInfo) -> rusqlite::Result<Open> {
    let now = Timestamp::now();
    let transaction = connection.transaction()?;
    for table in ["segment", "run"] {
        transaction
            .execute(&format!("UPDATE {table} SET status = 'crashed' WHERE status = 'running'"), [])?;
    }
    let id = match known_run(&transaction, run)? {
        Some(id) => id,
        None => {
            transaction.execute(
                "INSERT INTO run (uid, run_id, name, config_hash, started_ms, status)
                 VALUES (lower(hex(randomblob(16))), ?1, ?2, ?3, ?4, 'running')",
                params![run.run_id, run.name, run.config_hash, now.as_millisecond()],
            )?;
            transaction.last_insert_rowid()
        }
    };
    let embodied = run.embodied.as_ref();
    transaction.execute(
        "INSERT INTO segment (uid, run, rank, world_size, number, resumed_from_step, started_ms, status, host,
                              version, pue, wue_l_per_kwh, embodied_kg, embodied_years, embodied_share,
                              embodied_boundary)
         VALUES (lower(hex(randomblob(16))), ?1, ?2, ?3,
                 (SELECT count(*) FROM segment WHERE run = ?1 AND rank = ?2), ?4, ?5, 'running', ?6, ?7, ?8, ?9, ?10,
                 ?11, ?12, ?13)",
        params![
            id,
            run.rank,
            run.world_size,
            run.resumed_from_step,
            now.as_millisecond(),
            host_name(),
            env!("CARGO_PKG_VERSION"),
            run.pue,
            run.wue_l_per_kwh,
            embodied.map(|embodied| embodied.kg),
            embodied.map(|embodied| embodied.lifetime_years),
            embodied.map(|embodied| embodied.share),
            embodied.map(|embodied| &embodied.boundary),
        ],
    )?;
    let segment = transaction.last_insert_rowid();
    insert_intensity(&transaction, segment, 0, Role::Priced, &run.intensity, now)?;
    let before = transaction.query_row(
        "SELECT coalesce(sum(microjoules), 0), total(grams)
         FROM window WHERE segment IN (SELECT id FROM segment WHERE run = ?1)",
        [id],
        |row| Ok(Spent { energy: MicroJoules(row.get(0)?), grams: Grams(row.get(1)?) }),
    )?;
    transaction.commit()?;
    Ok(Open { segment, before })
}

/// The run of that name in this ledger, going on from the step it resumes from.
fn known_run(transaction: &Transaction<'_>, run: &RunInfo) -> rusqlite::Result<Option<i64>> {
    let known: Option<i64> = transaction
        .query_row("SELECT id FROM run WHERE run_id = ?1", [&run.run_id], |row| row.get(0))
        .optional()?;
    if let Some(id) = known {
        transaction.execute(
            "UPDATE run SET status = 'running', ended_ms = NULL, config_hash = ?2 WHERE id = ?1",
            params![id, run.config_hash],
        )?;
        transaction.execute(
            "UPDATE window SET superseded = 1
             WHERE (step > ?2 OR kind = 'open') AND segment IN (SELECT id FROM segment WHERE run = ?1 AND rank = ?3)",
            params![id, run.resumed_from_step.unwrap_or(0), run.rank],
        )?;
    }
    Ok(known)
}

/// Enters a carbon intensity.
pub(super) fn insert_intensity(
    transaction: &Transaction<'_>,
    segment: i64,
    number: i64,
    role: Role,
    intensity: &GridIntensity,
    learned_at: Timestamp,
) -> rusqlite::Result<()> {
    transaction.execute(
        "INSERT INTO intensity (segment, number, role, grams_per_kwh, zone, basis, accounting, source, year, from_ms,
                                until_ms, estimated, learned_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        params![
            segment,
            number,
            role.as_str(),
            intensity.grams_per_kwh.0,
            intensity.zone,
            intensity.basis.as_str(),
            intensity.accounting.as_str(),
            intensity.source,
            intensity.year,
            intensity.period.map(|period| period.from.as_millisecond()),
            intensity.period.map(|period| period.until.as_millisecond()),
            intensity.estimated,
            learned_at.as_millisecond(),
        ],
    )?;
    Ok(())
}

/// Ends a segment and its run.
pub(super) fn end(
    connection: &mut Connection,
    segment: i64,
    ending: &Ending,
    writer_cpu: Duration,
) -> rusqlite::Result<()> {
    let (status, at) = (ending.status.as_str(), ending.at.as_millisecond());
    let sensors = ending.sensors.as_ref();
    let transaction = connection.transaction()?;
    transaction.execute(
        "UPDATE segment SET status = ?2, ended_ms = ?3, sensor_resets = ?4, sensor_spikes = ?5, gap_seconds = ?6,
                            overhead_seconds = ?7
         WHERE id = ?1",
        params![
            segment,
            status,
            at,
            sensors.map(|sensors| sensors.resets),
            sensors.map(|sensors| sensors.spikes),
            sensors.map(|sensors| sensors.gap_seconds),
            (ending.overhead + writer_cpu).as_secs_f64(),
        ],
    )?;
    transaction.execute(
        "UPDATE run SET status = ?2, ended_ms = ?3 WHERE id = (SELECT run FROM segment WHERE id = ?1)",
        params![segment, status, at],
    )?;
    transaction.commit()
}

/// This machine's name, as segments keep it.
pub fn host_name() -> String {
    let mut name = [0u8; 256];
    // SAFETY: the pointer and the length describe `name`, which outlives the call.
    let outcome = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len()) };
    let length = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    match outcome {
        0 => String::from_utf8_lossy(&name[..length]).into_owned(),
        _ => "unknown".into(),
    }
}
