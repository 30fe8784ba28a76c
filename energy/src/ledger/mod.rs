//! The ledger: every window on disk, once, through crashes and restarts (SQLite, WAL, `synchronous=FULL`).
//!
//! A writer thread commits windows together, so that a step waits for no disk: every tenth of a second, which
//! outlives the process, and every second on the disk, which outlives the machine. [`Ledger::flush`] waits for the
//! disk and belongs before each checkpoint is declared durable. A `kill -9` loses at most the windows since the last
//! commit, never a committed one and never half a window; of a monitor that it watches, a tenth of a second.
//!
//! A resumed run does some steps again. The joules of the first attempt were spent and stay in the total; its
//! windows are marked superseded, so that "spent" and "in the final model" can be told apart and nothing is
//! counted twice. One process at a time may write a ledger; any number may read it.

mod complete;
mod info;
mod merge;
mod segment;
mod store;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::Connection;

pub use complete::{Completion, complete};
pub use info::{MarkKind, Role, RunInfo, RunStatus, Spent, WindowTags};
pub use merge::merge;
pub use segment::host_name;
pub use store::FILE_NAME;
pub(crate) use store::{open_for_reading, read_failure};

use crate::attribution::{Attribution, Split};
use crate::carbon::GridIntensity;
use crate::clock::thread_cpu_time;
use crate::error::{Error, Result};
use crate::units::Grams;
use crate::window::{EnergyTotals, WindowEnergy};
use segment::{Ending, Open};
use writer::{Command, Price, Row};

/// Windows that may wait for the writer before `record` waits too.
const MAX_WAITING: usize = 1024;

/// A ledger open for writing: one segment of one run.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    /// The figure that the segment began with, number 0 in the ledger.
    start: GridIntensity,
    /// What windows are priced with now.
    intensity: GridIntensity,
    price: Price,
    num_intensities: i64,
    num_marks: i64,
    before: Spent,
    recording_cpu: Duration,
    commands: SyncSender<Command>,
    writer: Option<JoinHandle<()>>,
    /// Set by the writer when it had to give up.
    failure: Arc<OnceLock<Error>>,
}

impl Ledger {
    /// Opens or creates the ledger at `path` and begins a segment of `run`. Segments that never ended are marked
    /// crashed; windows of this run that were not closed or lie beyond the step it resumes from are marked superseded.
    ///
    /// # Errors
    /// When the file cannot be written or is not a ledger.
    pub fn open(path: &Path, run: &RunInfo) -> Result<Self> {
        let mut connection = store::open_for_writing(path)?;
        let open =
            segment::begin(&mut connection, run).map_err(|error| store::failure(path, "write", &error))?;
        Self::with_connection(path, run, connection, open)
    }

    fn with_connection(path: &Path, run: &RunInfo, connection: Connection, open: Open) -> Result<Self> {
        let (commands, inbox) = sync_channel(MAX_WAITING);
        let failure = Arc::new(OnceLock::new());
        // The figure of the start is entered with the segment, as number 0.
        let price = Price { intensity_number: 0, grams_per_kwh: run.intensity.grams_per_kwh, pue: run.pue };
        let writer = {
            let (path, failure) = (path.to_owned(), Arc::clone(&failure));
            let thread = std::thread::Builder::new().name("energy-ledger".into());
            thread
                .spawn(move || {
                    if let Err(error) = writer::run(connection, open.segment, price, &inbox) {
                        // The inbox closes after this, so whoever finds it closed finds the reason too.
                        let _ = failure.set(store::failure(&path, "write", &error));
                    }
                })
                .map_err(|error| Error::Thread { what: "energy ledger", reason: error.to_string() })?
        };
        Ok(Ledger {
            path: path.to_owned(),
            start: run.intensity.clone(),
            intensity: run.intensity.clone(),
            price,
            num_intensities: 1,
            num_marks: 0,
            before: open.before,
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
        self.record_attributed(window, tags, &Attribution::default()).map(|(grams, _)| grams)
    }

    /// As [`record`](Self::record), and splits the window's energy over phases and experts.
    ///
    /// # Errors
    /// The same.
    pub fn record_attributed(
        &mut self,
        window: &WindowEnergy,
        tags: WindowTags,
        attribution: &Attribution<'_>,
    ) -> Result<(Option<Grams>, Split)> {
        let cpu_before = thread_cpu_time();
        let grams = self.price.of(window);
        let split = attribution.split(window);
        self.send(Command::Window(Box::new(Row {
            ended_at: Timestamp::now(),
            window: window.clone(),
            tags,
            price: self.price,
            grams,
            split: split.clone(),
        })))?;
        self.recording_cpu += thread_cpu_time().saturating_sub(cpu_before);
        Ok((grams, split))
    }

    /// Keeps the window in progress in the ledger too, as `in_progress` tells it, once every `period`: a kill in the
    /// middle of a long window then loses no more than that. It is asked on the writer's thread. Each time costs a
    /// commit, some 100 us.
    ///
    /// # Errors
    /// When an earlier entry could not be written.
    pub fn watch(
        &mut self,
        period: Duration,
        in_progress: impl Fn() -> WindowEnergy + Send + 'static,
    ) -> Result<()> {
        self.send(Command::Watch(period, Box::new(in_progress)))
    }

    /// Enters a carbon intensity, or the correction of one. Windows to come are priced with it when that is its
    /// role; reports price the windows of its period with it, those before it included.
    ///
    /// # Errors
    /// When an earlier entry could not be written.
    pub fn learn(&mut self, intensity: &GridIntensity, role: Role) -> Result<()> {
        let number = self.num_intensities;
        self.num_intensities += 1;
        let learned_at = Timestamp::now();
        self.send(Command::Intensity { number, role, intensity: intensity.clone(), learned_at })?;
        let holds_now =
            intensity.period.is_none_or(|period| (period.from..period.until).contains(&learned_at));
        if role == Role::Priced && holds_now {
            self.intensity = intensity.clone();
            self.price =
                Price { intensity_number: number, grams_per_kwh: intensity.grams_per_kwh, ..self.price };
        }
        Ok(())
    }

    /// Goes back to pricing with the figure of the start: the source of better ones has gone stale.
    pub fn forget(&mut self) {
        if self.price.intensity_number != 0 {
            self.intensity = self.start.clone();
            self.price = Price { intensity_number: 0, grams_per_kwh: self.start.grams_per_kwh, ..self.price };
        }
    }

    /// The carbon intensity that windows are priced with now.
    pub fn intensity(&self) -> &GridIntensity {
        &self.intensity
    }

    /// Enters something worth a mark in a plot.
    ///
    /// # Errors
    /// When an earlier entry could not be written.
    pub fn mark(&mut self, kind: MarkKind, step: Option<u64>, text: &str) -> Result<()> {
        let number = self.num_marks;
        self.num_marks += 1;
        self.send(Command::Mark { number, at: Timestamp::now(), step, kind, text: text.into() })
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

    /// Ends the segment and the run with a status, on disk, with what the monitor says of its sensors and its cost.
    /// Gives the CPU time that keeping the ledger took: the callers' of [`record`](Self::record) and the writer
    /// thread's.
    ///
    /// # Errors
    /// When that could not be written.
    pub fn finish(mut self, status: RunStatus, totals: Option<&EnergyTotals>) -> Result<Duration> {
        let (done, wait) = sync_channel(1);
        let ending = Ending::new(status, totals, self.recording_cpu);
        self.send(Command::Finish { ending, done })?;
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

#[cfg(test)]
mod tests;
