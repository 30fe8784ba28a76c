//! The ledger: every window on disk, once, through crashes and restarts (SQLite, WAL, `synchronous=FULL`).
//!
//! A writer thread commits windows together, about once a second, so that a step waits for no disk; [`Ledger::flush`]
//! waits for the disk and belongs before each checkpoint is declared durable. A `kill -9` loses at most the windows
//! since the last commit, never a committed one and never half a window.
//!
//! A resumed run does some steps again. The joules of the first attempt were spent and stay in the total; its
//! windows are marked superseded, so that "spent" and "in the final model" can be told apart and nothing is
//! counted twice. One process at a time may write a ledger; any number may read it.

mod store;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

pub use store::FILE_NAME;
pub(crate) use store::{open_for_reading, read_failure};

use crate::carbon::GridIntensity;
use crate::clock::thread_cpu_time;
use crate::error::{Error, Result};
use crate::units::{Grams, MicroJoules};
use crate::window::WindowEnergy;
use writer::{Command, Row};

/// Windows that may wait for the writer before `record` waits too.
const MAX_WAITING: usize = 1024;

/// A ledger open for writing: one segment of one run.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    segment: i64,
    intensity: GridIntensity,
    pue: f64,
    before: Spent,
    recording_cpu: Duration,
    commands: SyncSender<Command>,
    writer: Option<JoinHandle<()>>,
    /// Set by the writer when it had to give up.
    failure: Arc<OnceLock<Error>>,
}

/// What a ledger says about the run it belongs to.
#[derive(Clone, Debug, PartialEq)]
pub struct RunInfo {
    /// Names the run for good; the same in every restart.
    pub run_id: String,
    /// For people.
    pub name: String,
    /// Names the configuration.
    pub config_hash: String,
    /// The step of the checkpoint this process goes on from; `None` when it begins at the beginning.
    pub resumed_from_step: Option<u64>,
    /// The carbon intensity to count with.
    pub intensity: GridIntensity,
    /// Power usage effectiveness of the building.
    pub pue: f64,
}

/// What a window was for, beside its energy.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WindowTags {
    /// The last finished step at the window's end: the step itself for a step window.
    pub step: Option<u64>,
    /// Tokens trained on.
    pub tokens: u64,
    /// The step's loss, in nats.
    pub loss: Option<f64>,
}

/// Energy at the computer and the emissions counted for it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent {
    /// The energy.
    pub energy: MicroJoules,
    /// The emissions.
    pub grams: Grams,
}

/// How a run or a segment of it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunStatus {
    /// Not ended, or killed and not yet found out.
    Running,
    /// Reached its goal.
    Completed,
    /// Stopped by a signal with a durable checkpoint.
    Interrupted,
    /// Stopped by an error.
    Failed,
    /// Found without an end by the process after it.
    Crashed,
}

impl RunStatus {
    /// The name in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            RunStatus::Running => "running",
            RunStatus::Completed => "completed",
            RunStatus::Interrupted => "interrupted",
            RunStatus::Failed => "failed",
            RunStatus::Crashed => "crashed",
        }
    }

    /// The status of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        use RunStatus::*;
        [Running, Completed, Interrupted, Failed, Crashed].into_iter().find(|status| status.as_str() == name)
    }
}

impl Ledger {
    /// Opens or creates the ledger at `path` and begins a segment of `run`. Segments that never ended are marked
    /// crashed; windows of this run beyond the step it resumes from are marked superseded.
    ///
    /// # Errors
    /// When the file cannot be written or is not a ledger.
    pub fn open(path: &Path, run: &RunInfo) -> Result<Self> {
        let mut connection = store::open_for_writing(path)?;
        let (segment, before) =
            begin_segment(&mut connection, run).map_err(|error| store::failure(path, "write", &error))?;
        Self::with_connection(path, run, connection, segment, before)
    }

    fn with_connection(
        path: &Path,
        run: &RunInfo,
        connection: Connection,
        segment: i64,
        before: Spent,
    ) -> Result<Self> {
        let (commands, inbox) = sync_channel(MAX_WAITING);
        let failure = Arc::new(OnceLock::new());
        let writer = {
            let (path, failure) = (path.to_owned(), Arc::clone(&failure));
            let thread = std::thread::Builder::new().name("energy-ledger".into());
            thread
                .spawn(move || {
                    if let Err(error) = writer::run(connection, &inbox) {
                        // The inbox closes after this, so whoever finds it closed finds the reason too.
                        let _ = failure.set(store::failure(&path, "write", &error));
                    }
                })
                .map_err(|error| Error::Thread { what: "energy ledger", reason: error.to_string() })?
        };
        Ok(Ledger {
            path: path.to_owned(),
            segment,
            intensity: run.intensity.clone(),
            pue: run.pue,
            before,
            recording_cpu: Duration::ZERO,
            commands,
            writer: Some(writer),
            failure,
        })
    }

    /// Enters a window and gives what it emitted; `None` when its energy is unknown. The same window entered twice
    /// counts once.
    ///
    /// # Errors
    /// When an earlier window could not be written; the ledger then takes no more.
    pub fn record(&mut self, window: &WindowEnergy, tags: WindowTags) -> Result<Option<Grams>> {
        let cpu_before = thread_cpu_time();
        let grams = window.joules.map(|joules| self.intensity.grams_per_kwh.grams(joules, self.pue));
        self.send(Command::Window(Row {
            segment: self.segment,
            ended_at: Timestamp::now(),
            window: window.clone(),
            tags,
            grams,
        }))?;
        self.recording_cpu += thread_cpu_time().saturating_sub(cpu_before);
        Ok(grams)
    }

    /// What earlier segments of this run have spent, superseded work included: running totals go on from here.
    pub fn spent_before(&self) -> Spent {
        self.before
    }

    /// Waits until every window entered so far is on disk.
    ///
    /// # Errors
    /// When they could not be written.
    pub fn flush(&mut self) -> Result<()> {
        let (done, wait) = sync_channel(1);
        self.send(Command::Flush(done))?;
        self.wait_for(&wait)
    }

    /// Ends the segment and the run with a status, on disk, and gives the CPU time that keeping the ledger took: the
    /// callers' of [`record`](Self::record) and the writer thread's.
    ///
    /// # Errors
    /// When that could not be written.
    pub fn finish(mut self, status: RunStatus) -> Result<Duration> {
        let (done, wait) = sync_channel(1);
        let ended_at = Timestamp::now();
        self.send(Command::Finish { segment: self.segment, status, ended_at, done })?;
        Ok(self.recording_cpu + self.wait_for(&wait)?)
    }

    fn send(&mut self, command: Command) -> Result<()> {
        self.commands.send(command).map_err(|_| self.reason())
    }

    fn wait_for<T>(&mut self, done: &Receiver<T>) -> Result<T> {
        done.recv().map_err(|_| self.reason())
    }

    /// Why the writer has left.
    fn reason(&mut self) -> Error {
        if let Some(writer) = self.writer.take() {
            // A panic has been told on stderr; the error below says the rest.
            let _ = writer.join();
        }
        self.failure.get().cloned().unwrap_or_else(|| Error::Ledger {
            path: self.path.clone(),
            action: "write",
            reason: "its writer thread has ended".into(),
            remedy: "this is a bug, please report it",
        })
    }
}

impl Drop for Ledger {
    /// Commits what has been entered. The segment stays without an end: the next process marks it crashed.
    fn drop(&mut self) {
        let (closed, _) = sync_channel(1);
        drop(std::mem::replace(&mut self.commands, closed));
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// Enters the run, if new, and a new segment of it; settles what earlier processes left open and sums what they
/// have spent.
fn begin_segment(connection: &mut Connection, run: &RunInfo) -> rusqlite::Result<(i64, Spent)> {
    let now = Timestamp::now().to_string();
    let transaction = connection.transaction()?;
    for table in ["segment", "run"] {
        transaction
            .execute(&format!("UPDATE {table} SET status = 'crashed' WHERE status = 'running'"), [])?;
    }
    let known: Option<i64> = transaction
        .query_row("SELECT id FROM run WHERE run_id = ?1", [&run.run_id], |row| row.get(0))
        .optional()?;
    let id = match known {
        Some(id) => {
            transaction.execute(
                "UPDATE run SET status = 'running', ended_at = NULL, config_hash = ?2 WHERE id = ?1",
                params![id, run.config_hash],
            )?;
            transaction.execute(
                "UPDATE window SET superseded = 1
                 WHERE step > ?2 AND segment IN (SELECT id FROM segment WHERE run = ?1)",
                params![id, run.resumed_from_step.unwrap_or(0)],
            )?;
            id
        }
        None => {
            transaction.execute(
                "INSERT INTO run (run_id, name, config_hash, started_at, status)
                 VALUES (?1, ?2, ?3, ?4, 'running')",
                params![run.run_id, run.name, run.config_hash, now],
            )?;
            transaction.last_insert_rowid()
        }
    };
    let intensity = &run.intensity;
    transaction.execute(
        "INSERT INTO segment (run, number, resumed_from_step, started_at, status, host, location, grams_per_kwh,
                              intensity_year, intensity_basis, intensity_source, pue)
         VALUES (?1, (SELECT count(*) FROM segment WHERE run = ?1), ?2, ?3, 'running', ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        params![
            id,
            run.resumed_from_step,
            now,
            host_name(),
            intensity.zone,
            intensity.grams_per_kwh.0,
            intensity.year,
            intensity.basis.as_str(),
            intensity.source,
            run.pue,
        ],
    )?;
    let segment = transaction.last_insert_rowid();
    let before = transaction.query_row(
        "SELECT coalesce(sum(microjoules), 0), total(grams)
         FROM window WHERE segment IN (SELECT id FROM segment WHERE run = ?1)",
        [id],
        |row| Ok(Spent { energy: MicroJoules(row.get(0)?), grams: Grams(row.get(1)?) }),
    )?;
    transaction.commit()?;
    Ok((segment, before))
}

fn host_name() -> String {
    let mut name = [0u8; 256];
    // SAFETY: the pointer and the length describe `name`, which outlives the call.
    let outcome = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len()) };
    let length = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    match outcome {
        0 => String::from_utf8_lossy(&name[..length]).into_owned(),
        _ => "unknown".into(),
    }
}

#[cfg(test)]
mod tests;
