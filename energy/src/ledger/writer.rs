//! The writer thread: collects entries and commits them together.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rusqlite::{Connection, Transaction, params};

use super::segment::{self, Ending};
use super::{MarkKind, Role, WindowTags};
use crate::attribution::Split;
use crate::carbon::GridIntensity;
use crate::clock::thread_cpu_time;
use crate::units::Grams;
use crate::window::{DomainEnergy, WindowEnergy};

/// The oldest entry waits no longer for its commit.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);

/// As many entries are committed at once.
const MAX_BATCH: usize = 256;

/// One window on its way to the disk.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) ended_at: Timestamp,
    pub(super) window: WindowEnergy,
    pub(super) tags: WindowTags,
    pub(super) intensity_number: i64,
    pub(super) grams: Option<Grams>,
    pub(super) split: Split,
}

/// What the writer is asked to do. A `done` that is dropped without a word means that it failed.
#[derive(Debug)]
pub(super) enum Command {
    Window(Box<Row>),
    Intensity {
        number: i64,
        role: Role,
        intensity: GridIntensity,
        learned_at: Timestamp,
    },
    Mark {
        number: i64,
        at: Timestamp,
        step: Option<u64>,
        kind: MarkKind,
        text: String,
    },
    Flush(SyncSender<()>),
    /// Answered with the CPU time of the writer's whole life.
    Finish {
        ending: Ending,
        done: SyncSender<Duration>,
    },
}

/// Serves until the last sender has gone.
///
/// # Errors
/// The first failed commit ends the service.
pub(super) fn run(connection: Connection, segment: i64, inbox: &Receiver<Command>) -> rusqlite::Result<()> {
    let mut writer = Writer { connection, segment, sensors: Vec::new(), batch: Vec::new() };
    let mut due = Instant::now();
    loop {
        let command = if writer.batch.is_empty() {
            inbox.recv().map_err(RecvTimeoutError::from)
        } else {
            inbox.recv_timeout(due.saturating_duration_since(Instant::now()))
        };
        match command {
            Ok(Command::Flush(done)) => {
                writer.commit()?;
                // Whoever asked may have given up waiting.
                let _ = done.send(());
            }
            Ok(Command::Finish { ending, done }) => {
                writer.commit()?;
                segment::end(&mut writer.connection, segment, &ending, thread_cpu_time())?;
                let _ = done.send(thread_cpu_time());
            }
            Ok(entry) => {
                if writer.batch.is_empty() {
                    due = Instant::now() + COMMIT_INTERVAL;
                }
                writer.batch.push(entry);
                // The time is checked here as well: a steady stream of entries must not put it off.
                if writer.batch.len() >= MAX_BATCH || Instant::now() >= due {
                    writer.commit()?;
                }
            }
            Err(RecvTimeoutError::Timeout) => writer.commit()?,
            Err(RecvTimeoutError::Disconnected) => return writer.commit(),
        }
    }
}

struct Writer {
    connection: Connection,
    segment: i64,
    /// Sensors that the ledger has, with their ids.
    sensors: Vec<(DomainEnergy, i64)>,
    batch: Vec<Command>,
}

impl Writer {
    fn commit(&mut self) -> rusqlite::Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let transaction = self.connection.transaction()?;
        let mut split = Split::default();
        for entry in &self.batch {
            match entry {
                Command::Window(row) => {
                    if insert_window(&transaction, self.segment, &mut self.sensors, row)? {
                        split.add(&row.split);
                    }
                }
                Command::Intensity { number, role, intensity, learned_at } => {
                    segment::insert_intensity(
                        &transaction,
                        self.segment,
                        *number,
                        *role,
                        intensity,
                        *learned_at,
                    )?;
                }
                Command::Mark { number, at, step, kind, text } => {
                    transaction.execute(
                        "INSERT INTO mark (segment, number, at_ms, step, kind, text)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                        params![self.segment, number, at.as_millisecond(), step, kind.as_str(), text],
                    )?;
                }
                // Answered at once, never collected.
                Command::Flush(_) | Command::Finish { .. } => {}
            }
        }
        add_split(&transaction, self.segment, &split)?;
        transaction.commit()?;
        self.batch.clear();
        Ok(())
    }
}

/// Enters a window with its domains; false, and nothing changed, when it is there already.
fn insert_window(
    transaction: &Transaction<'_>,
    segment: i64,
    sensors: &mut Vec<(DomainEnergy, i64)>,
    row: &Row,
) -> rusqlite::Result<bool> {
    let Row { ended_at, window, tags, intensity_number, grams, split: _ } = row;
    let inserted = transaction
        .prepare_cached(
            "INSERT INTO window (segment, seq, kind, step, tokens, ended_ms, seconds, microjoules, intensity, grams,
                                 loss, error_bound_joules, complete)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)
             ON CONFLICT (segment, seq) DO NOTHING",
        )?
        .execute(params![
            segment,
            window.seq,
            window.kind.as_str(),
            tags.step,
            tags.tokens,
            ended_at.as_millisecond(),
            window.duration.0,
            window.joules.map(|_| window.microjoules().0),
            intensity_number,
            grams.map(|grams| grams.0),
            tags.loss,
            window.error_bound.map(|joules| joules.0),
            window.complete,
        ])?;
    if inserted == 0 {
        return Ok(false);
    }
    for part in &window.domains {
        let sensor = sensor_id(transaction, segment, sensors, part)?;
        transaction
            .prepare_cached(
                "INSERT INTO window_energy (segment, seq, sensor, microjoules) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![segment, window.seq, sensor, part.microjoules.0])?;
    }
    Ok(true)
}

fn sensor_id(
    transaction: &Transaction<'_>,
    segment: i64,
    known: &mut Vec<(DomainEnergy, i64)>,
    part: &DomainEnergy,
) -> rusqlite::Result<i64> {
    let same = |own: &DomainEnergy| {
        (&own.domain, own.sensor, own.provenance) == (&part.domain, part.sensor, part.provenance)
    };
    if let Some((_, id)) = known.iter().find(|(own, _)| same(own)) {
        return Ok(*id);
    }
    transaction.execute(
        "INSERT INTO sensor (segment, domain, sensor, source) VALUES (?1, ?2, ?3, ?4)",
        params![segment, part.domain.as_ref(), part.sensor, part.provenance.as_str()],
    )?;
    let id = transaction.last_insert_rowid();
    known.push((part.clone(), id));
    Ok(id)
}

/// Adds the split of some windows to the sums of the segment.
fn add_split(transaction: &Transaction<'_>, segment: i64, split: &Split) -> rusqlite::Result<()> {
    for part in &split.phases {
        transaction
            .prepare_cached(
                "INSERT INTO phase_energy (segment, phase, seconds, microjoules) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (segment, phase) DO UPDATE
                 SET seconds = seconds + excluded.seconds, microjoules = microjoules + excluded.microjoules",
            )?
            .execute(params![segment, part.phase, part.seconds, part.microjoules.0])?;
    }
    for part in &split.experts {
        transaction
            .prepare_cached(
                "INSERT INTO expert_energy (segment, layer, expert, tokens, microjoules) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (segment, layer, expert) DO UPDATE
                 SET tokens = tokens + excluded.tokens, microjoules = microjoules + excluded.microjoules",
            )?
            .execute(params![segment, part.layer, part.expert, part.tokens, part.microjoules.0])?;
    }
    for part in &split.waste {
        transaction
            .prepare_cached(
                "INSERT INTO waste (segment, reason, count, microjoules) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (segment, reason) DO UPDATE
                 SET count = count + excluded.count, microjoules = microjoules + excluded.microjoules",
            )?
            .execute(params![segment, part.reason, part.count, part.microjoules.0])?;
    }
    Ok(())
}
