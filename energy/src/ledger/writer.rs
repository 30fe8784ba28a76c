//! The writer thread: collects entries and commits them together.
//!
//! Two clocks: a commit every tenth of a second, which outlives the process, and every second one that waits for the
//! disk, which outlives the machine. With a watched monitor each commit also holds the window in progress, so that a
//! kill in the middle of a long step loses no more than a sampling period.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rusqlite::{Connection, Transaction, params};

use super::segment::{self, Ending};
use super::{MarkKind, Role, WindowTags};
use crate::attribution::Split;
use crate::carbon::GridIntensity;
use crate::clock::thread_cpu_time;
use crate::units::{Grams, GramsPerKilowattHour};
use crate::window::{DomainEnergy, WindowEnergy};

/// The oldest entry waits no longer for its commit, unless a watch has another period.
const COMMIT_INTERVAL: Duration = Duration::from_millis(100);

/// The oldest commit waits no longer for the disk.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// As many entries are committed at once.
const MAX_BATCH: usize = 256;

/// One window on its way to the disk.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) ended_at: Timestamp,
    pub(super) window: WindowEnergy,
    pub(super) tags: WindowTags,
    pub(super) price: Price,
    pub(super) grams: Option<Grams>,
    pub(super) split: Split,
}

/// What a joule emits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Price {
    /// The intensity's number within the segment.
    pub(super) intensity_number: i64,
    pub(super) grams_per_kwh: GramsPerKilowattHour,
    pub(super) pue: f64,
}

impl Price {
    /// The emissions of a window; `None` when its energy is unknown.
    pub(super) fn of(self, window: &WindowEnergy) -> Option<Grams> {
        window.joules.map(|joules| self.grams_per_kwh.grams(joules, self.pue))
    }
}

/// Tells the energy of the window in progress.
pub(super) type Watch = Box<dyn Fn() -> WindowEnergy + Send>;

/// What the writer is asked to do. A `done` that is dropped without a word means that it failed.
pub(super) enum Command {
    Window(Box<Row>),
    /// From now on each commit holds the window in progress, and they come this often.
    Watch(Duration, Watch),
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
pub(super) fn run(
    connection: Connection,
    segment: i64,
    price: Price,
    inbox: &Receiver<Command>,
) -> rusqlite::Result<()> {
    let mut writer = Writer {
        connection,
        segment,
        sensors: Vec::new(),
        batch: Vec::new(),
        watch: None,
        period: COMMIT_INTERVAL,
        newest: None,
        price,
        open: None,
        waits_for_disk: None,
        // As the ledger is opened.
        waits: true,
    };
    let mut due = Instant::now();
    loop {
        let command = if writer.has_work() {
            inbox.recv_timeout(due.saturating_duration_since(Instant::now()))
        } else {
            inbox.recv().map_err(RecvTimeoutError::from)
        };
        match command {
            Ok(Command::Flush(done)) => {
                writer.commit(Durability::Disk)?;
                // Whoever asked may have given up waiting.
                let _ = done.send(());
                continue;
            }
            Ok(Command::Finish { ending, done }) => {
                writer.watch = None;
                writer.commit(Durability::Process)?;
                writer.wait_for_disk(true)?;
                segment::end(&mut writer.connection, segment, &ending, thread_cpu_time())?;
                writer.waits_for_disk = None;
                let _ = done.send(thread_cpu_time());
                continue;
            }
            Ok(Command::Watch(period, watch)) => {
                writer.watch = Some(watch);
                writer.period = period;
            }
            Ok(entry) => {
                if !writer.has_work() {
                    due = Instant::now() + writer.period;
                }
                writer.batch.push(entry);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                writer.watch = None;
                return writer.commit(Durability::Disk);
            }
        }
        // The time is checked after entries as well: a steady stream of them must not put it off.
        let now = Instant::now();
        if writer.batch.len() >= MAX_BATCH || now >= due {
            let sync = writer.waits_for_disk.is_some_and(|since| now >= since + SYNC_INTERVAL);
            writer.commit(if sync { Durability::Disk } else { Durability::Process })?;
            due = now + writer.period;
        }
    }
}

/// What a commit outlives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Durability {
    /// A kill of the process.
    Process,
    /// A loss of power.
    Disk,
}

struct Writer {
    connection: Connection,
    segment: i64,
    /// Sensors that the ledger has, with their ids.
    sensors: Vec<(DomainEnergy, i64)>,
    batch: Vec<Command>,
    watch: Option<Watch>,
    /// Time between two commits.
    period: Duration,
    /// Number and step of the newest closed window.
    newest: Option<(u64, Option<u64>)>,
    /// That of the newest window.
    price: Price,
    /// The window in progress that the ledger holds.
    open: Option<u64>,
    /// Since when a commit has been waiting for the disk.
    waits_for_disk: Option<Instant>,
    /// Whether commits wait for the disk now.
    waits: bool,
}

impl Writer {
    /// Whether a commit will be due without any further entry.
    fn has_work(&self) -> bool {
        !self.batch.is_empty() || self.watch.is_some() || self.waits_for_disk.is_some()
    }

    fn commit(&mut self, durability: Durability) -> rusqlite::Result<()> {
        let in_progress = self.watch.as_ref().map(|watch| watch());
        let waits = durability == Durability::Disk && self.waits_for_disk.is_some();
        if self.batch.is_empty() && in_progress.is_none() && !waits {
            return Ok(());
        }
        self.wait_for_disk(durability == Durability::Disk)?;
        let batch = std::mem::take(&mut self.batch);
        let transaction = self.connection.transaction()?;
        let mut entries =
            Entries { transaction: &transaction, segment: self.segment, sensors: &mut self.sensors };
        let mut split = Split::default();
        for entry in &batch {
            match entry {
                Command::Window(row) => {
                    if self.open.take_if(|open| *open == row.window.seq).is_some() {
                        entries.remove_window(row.window.seq)?;
                    }
                    if entries.insert_window(row)? {
                        split.add(&row.split);
                    }
                    self.newest = Some((row.window.seq, row.tags.step));
                    self.price = row.price;
                }
                Command::Intensity { number, role, intensity, learned_at } => {
                    let at = *learned_at;
                    segment::insert_intensity(&transaction, self.segment, *number, *role, intensity, at)?;
                }
                Command::Mark { number, at, step, kind, text } => {
                    transaction.execute(
                        "INSERT INTO mark (segment, number, at_ms, step, kind, text)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                        params![self.segment, number, at.as_millisecond(), step, kind.as_str(), text],
                    )?;
                }
                // Answered at once, never collected.
                Command::Watch(..) | Command::Flush(_) | Command::Finish { .. } => {}
            }
        }
        entries.add_split(&split)?;
        // One that is further on has closed a window whose row is still on its way: the next commit has both.
        let follows = |window: &WindowEnergy| window.seq == self.newest.map_or(0, |(seq, _)| seq + 1);
        if let Some(window) = in_progress.filter(follows) {
            let (seq, price) = (window.seq, self.price);
            if self.open.is_some() {
                entries.remove_window(seq)?;
            }
            let step = self.newest.and_then(|(_, step)| step);
            entries.insert_window(&Row {
                ended_at: Timestamp::now(),
                grams: price.of(&window),
                window,
                tags: WindowTags { step, ..WindowTags::default() },
                price,
                split: Split::default(),
            })?;
            self.open = Some(seq);
        }
        transaction
            .prepare_cached("UPDATE segment SET alive_ms = ?2 WHERE id = ?1")?
            .execute(params![self.segment, Timestamp::now().as_millisecond()])?;
        transaction.commit()?;
        self.waits_for_disk = match durability {
            Durability::Disk => None,
            Durability::Process => self.waits_for_disk.or_else(|| Some(Instant::now())),
        };
        Ok(())
    }

    /// Whether commits wait for the disk from here on.
    fn wait_for_disk(&mut self, wait: bool) -> rusqlite::Result<()> {
        if std::mem::replace(&mut self.waits, wait) != wait {
            self.connection.pragma_update(None, "synchronous", if wait { "FULL" } else { "NORMAL" })?;
        }
        Ok(())
    }
}

/// The statements of one commit.
struct Entries<'a> {
    transaction: &'a Transaction<'a>,
    segment: i64,
    sensors: &'a mut Vec<(DomainEnergy, i64)>,
}

impl Entries<'_> {
    fn remove_window(&self, seq: u64) -> rusqlite::Result<()> {
        for table in ["window_energy", "window"] {
            self.transaction
                .prepare_cached(&format!("DELETE FROM {table} WHERE segment = ?1 AND seq = ?2"))?
                .execute(params![self.segment, seq])?;
        }
        Ok(())
    }

    /// Enters a window with its domains; false, and nothing changed, when it is there already.
    fn insert_window(&mut self, row: &Row) -> rusqlite::Result<bool> {
        let Row { ended_at, window, tags, price, grams, split: _ } = row;
        let inserted = self.transaction
        .prepare_cached(
            "INSERT INTO window (segment, seq, kind, step, tokens, ended_ms, seconds, microjoules, intensity, grams,
                                 loss, error_bound_joules, complete)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)
             ON CONFLICT (segment, seq) DO NOTHING",
        )?
        .execute(params![
            self.segment,
            window.seq,
            window.kind.as_str(),
            tags.step,
            tags.tokens,
            ended_at.as_millisecond(),
            window.duration.0,
            window.joules.map(|_| window.microjoules().0),
            price.intensity_number,
            grams.map(|grams| grams.0),
            tags.loss,
            window.error_bound.map(|joules| joules.0),
            window.complete,
        ])?;
        if inserted == 0 {
            return Ok(false);
        }
        for part in &window.domains {
            let sensor = self.sensor_id(part)?;
            self.transaction
                .prepare_cached(
                    "INSERT INTO window_energy (segment, seq, sensor, microjoules) VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute(params![self.segment, window.seq, sensor, part.microjoules.0])?;
        }
        Ok(true)
    }

    fn sensor_id(&mut self, part: &DomainEnergy) -> rusqlite::Result<i64> {
        let same = |own: &DomainEnergy| {
            (&own.domain, own.sensor, own.provenance) == (&part.domain, part.sensor, part.provenance)
        };
        if let Some((_, id)) = self.sensors.iter().find(|(own, _)| same(own)) {
            return Ok(*id);
        }
        self.transaction.execute(
            "INSERT INTO sensor (segment, domain, sensor, source) VALUES (?1, ?2, ?3, ?4)",
            params![self.segment, part.domain.as_ref(), part.sensor, part.provenance.as_str()],
        )?;
        let id = self.transaction.last_insert_rowid();
        self.sensors.push((part.clone(), id));
        Ok(id)
    }

    /// Adds the split of some windows to the sums of the segment.
    fn add_split(&self, split: &Split) -> rusqlite::Result<()> {
        for part in &split.phases {
            self.transaction
                .prepare_cached(
                    "INSERT INTO phase_energy (segment, phase, seconds, microjoules) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (segment, phase) DO UPDATE
                 SET seconds = seconds + excluded.seconds, microjoules = microjoules + excluded.microjoules",
                )?
                .execute(params![self.segment, part.phase, part.seconds, part.microjoules.0])?;
        }
        for part in &split.experts {
            self.transaction
            .prepare_cached(
                "INSERT INTO expert_energy (segment, layer, expert, tokens, microjoules) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (segment, layer, expert) DO UPDATE
                 SET tokens = tokens + excluded.tokens, microjoules = microjoules + excluded.microjoules",
            )?
            .execute(params![self.segment, part.layer, part.expert, part.tokens, part.microjoules.0])?;
        }
        for part in &split.waste {
            self.transaction
                .prepare_cached(
                    "INSERT INTO waste (segment, reason, count, microjoules) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (segment, reason) DO UPDATE
                 SET count = count + excluded.count, microjoules = microjoules + excluded.microjoules",
                )?
                .execute(params![self.segment, part.reason, part.count, part.microjoules.0])?;
        }
        Ok(())
    }
}
