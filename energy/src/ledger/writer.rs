//! The writer thread: collects windows and commits them together.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rusqlite::{Connection, params};

use super::{RunStatus, WindowTags};
use crate::clock::thread_cpu_time;
use crate::units::Grams;
use crate::window::WindowEnergy;

/// The oldest window waits no longer for its commit.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);

/// As many windows are committed at once.
const MAX_BATCH: usize = 256;

/// One window on its way to the disk.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) segment: i64,
    pub(super) ended_at: Timestamp,
    pub(super) window: WindowEnergy,
    pub(super) tags: WindowTags,
    pub(super) grams: Option<Grams>,
}

/// What the writer is asked to do. A `done` that is dropped without a word means that it failed.
#[derive(Debug)]
pub(super) enum Command {
    Window(Row),
    Flush(SyncSender<()>),
    /// Answered with the CPU time of the writer's whole life.
    Finish {
        segment: i64,
        status: RunStatus,
        ended_at: Timestamp,
        done: SyncSender<Duration>,
    },
}

/// Serves until the last sender has gone.
///
/// # Errors
/// The first failed commit ends the service.
pub(super) fn run(mut connection: Connection, inbox: &Receiver<Command>) -> rusqlite::Result<()> {
    let mut batch = Vec::new();
    let mut due = Instant::now();
    loop {
        let command = if batch.is_empty() {
            inbox.recv().map_err(RecvTimeoutError::from)
        } else {
            inbox.recv_timeout(due.saturating_duration_since(Instant::now()))
        };
        match command {
            Ok(Command::Window(row)) => {
                if batch.is_empty() {
                    due = Instant::now() + COMMIT_INTERVAL;
                }
                batch.push(row);
                // The time is checked here as well: a steady stream of windows must not put it off.
                if batch.len() >= MAX_BATCH || Instant::now() >= due {
                    commit(&mut connection, &mut batch)?;
                }
            }
            Ok(Command::Flush(done)) => {
                commit(&mut connection, &mut batch)?;
                // Whoever asked may have given up waiting.
                let _ = done.send(());
            }
            Ok(Command::Finish { segment, status, ended_at, done }) => {
                commit(&mut connection, &mut batch)?;
                end_segment(&mut connection, segment, status, ended_at)?;
                let _ = done.send(thread_cpu_time());
            }
            Err(RecvTimeoutError::Timeout) => commit(&mut connection, &mut batch)?,
            Err(RecvTimeoutError::Disconnected) => return commit(&mut connection, &mut batch),
        }
    }
}

fn commit(connection: &mut Connection, batch: &mut Vec<Row>) -> rusqlite::Result<()> {
    if batch.is_empty() {
        return Ok(());
    }
    let transaction = connection.transaction()?;
    {
        let mut insert_window = transaction.prepare_cached(
            "INSERT INTO window (segment, seq, kind, step, tokens, ended_at, seconds, microjoules, grams, loss,
                                 error_bound_joules, complete)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
             ON CONFLICT (segment, seq) DO NOTHING",
        )?;
        let mut insert_energy = transaction.prepare_cached(
            "INSERT INTO window_energy (segment, seq, domain, sensor, source, microjoules)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?;
        for Row { segment, ended_at, window, tags, grams } in batch.iter() {
            let microjoules =
                window.joules.map(|_| window.domains.iter().map(|part| part.microjoules.0).sum::<u64>());
            let inserted = insert_window.execute(params![
                segment,
                window.seq,
                window.kind.as_str(),
                tags.step,
                tags.tokens,
                ended_at.to_string(),
                window.duration.0,
                microjoules,
                grams.map(|grams| grams.0),
                tags.loss,
                window.error_bound.map(|joules| joules.0),
                window.complete,
            ])?;
            if inserted == 0 {
                continue;
            }
            for part in &window.domains {
                insert_energy.execute(params![
                    segment,
                    window.seq,
                    part.domain.as_ref(),
                    part.sensor,
                    part.provenance.as_str(),
                    part.microjoules.0,
                ])?;
            }
        }
    }
    transaction.commit()?;
    batch.clear();
    Ok(())
}

fn end_segment(
    connection: &mut Connection,
    segment: i64,
    status: RunStatus,
    ended_at: Timestamp,
) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    let change = params![segment, status.as_str(), ended_at.to_string()];
    transaction.execute("UPDATE segment SET status = ?2, ended_at = ?3 WHERE id = ?1", change)?;
    transaction.execute(
        "UPDATE run SET status = ?2, ended_at = ?3 WHERE id = (SELECT run FROM segment WHERE id = ?1)",
        change,
    )?;
    transaction.commit()
}
