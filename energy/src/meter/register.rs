//! One hardware energy register, and the meter that follows it.
//!
//! Each register is a meter of its own, so that one that fails, leaves or stands still takes no other with it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::counter::CounterTracker;
use super::model::CpuClock;
use super::{Domain, Meter, MeterError, MeterErrorKind, Note, Plausible, Provenance, Reading};
use crate::clock::process_cpu_time;
use crate::units::Watts;

/// No package sold draws this much for longer than a counter update.
pub(super) const PACKAGE: Plausible =
    Plausible { max_watts: Watts(1000.0), update_slack: Duration::from_millis(50) };
/// The memory of one socket.
pub(super) const DRAM: Plausible =
    Plausible { max_watts: Watts(300.0), update_slack: Duration::from_millis(50) };
/// A whole machine of several sockets.
pub(super) const PLATFORM: Plausible =
    Plausible { max_watts: Watts(5000.0), update_slack: Duration::from_millis(50) };

/// A register that repeats itself while this much CPU time is spent is stuck: idle packages move it every
/// millisecond, and so do busy ones.
const STUCK_AFTER_CPU_TIME: Duration = Duration::from_secs(1);

/// What the plausible draw of a domain of that name is.
pub(super) fn plausible(domain: &str) -> Plausible {
    match domain {
        name if name.starts_with("dram") => DRAM,
        "psys" => PLATFORM,
        _ => PACKAGE,
    }
}

/// The longest time between two readings in which no wrap can hide: half of the shortest one, at most a minute.
pub(super) fn longest_pause(range: Option<u64>, plausible: Plausible) -> Duration {
    const MOST: Duration = Duration::from_secs(60);
    let Some(range) = range else { return MOST };
    Duration::try_from_secs_f64(range as f64 / 1e6 / (2.0 * plausible.max_watts.0))
        .map_or(MOST, |t| t.min(MOST))
}

/// A register behind an open file.
#[derive(Debug)]
pub(super) enum Register {
    /// A file in sysfs that shows whole microjoules. Kept open and read from its start.
    Text {
        /// The file.
        file: File,
        /// Its name, for messages.
        path: PathBuf,
    },
    /// A perf event: a count of eight bytes, read at the cursor.
    Event {
        /// The event.
        file: File,
        /// Its name, for messages.
        name: String,
        /// Joules for each count.
        scale: f64,
    },
}

impl Register {
    /// Opens a file that shows whole microjoules.
    pub(super) fn open_text(path: &Path) -> io::Result<Self> {
        Ok(Register::Text { file: File::open(path)?, path: path.into() })
    }

    /// Microjoules.
    pub(super) fn read(&self) -> io::Result<u64> {
        match self {
            Register::Text { file, .. } => {
                let mut text = [0u8; 32];
                let length = file.read_at(&mut text, 0)?;
                let text = std::str::from_utf8(&text[..length]).ok();
                text.and_then(|text| text.trim().parse().ok())
                    .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a whole number"))
            }
            Register::Event { file, scale, .. } => {
                let mut count = [0u8; 8];
                let mut cursor: &File = file;
                cursor.read_exact(&mut count)?;
                // The unit is 2^-32 J: even at 2^64 counts a double is exact to half a microjoule.
                Ok((u64::from_ne_bytes(count) as f64 * scale * 1e6) as u64)
            }
        }
    }

    /// Its name in messages.
    pub(super) fn name(&self) -> String {
        match self {
            Register::Text { path, .. } => path.display().to_string(),
            Register::Event { name, .. } => format!("perf event {name}"),
        }
    }
}

/// The meter of one register.
pub struct RegisterMeter {
    domain: [Domain; 1],
    register: Register,
    tracker: CounterTracker,
    last_try: Duration,
    /// The newest value, and when it was first seen: on the caller's clock and in CPU time.
    newest: Option<(u64, Duration, Duration)>,
    cpu_time: CpuClock,
}

impl RegisterMeter {
    /// Follows `register`, which goes from `range` (where it has one) to 0.
    pub(super) fn new(name: &str, sensor: &'static str, register: Register, range: Option<u64>) -> Self {
        RegisterMeter {
            domain: [Domain { name: name.into(), sensor, provenance: Provenance::MeasuredCounter }],
            register,
            tracker: CounterTracker::new(range, plausible(name)),
            last_try: Duration::ZERO,
            newest: None,
            cpu_time: Box::new(process_cpu_time),
        }
    }

    /// The domain's name.
    pub fn name(&self) -> &str {
        &self.domain[0].name
    }

    pub(super) fn register(&self) -> &Register {
        &self.register
    }

    fn failure(&self, kind: MeterErrorKind, what: &str) -> MeterError {
        let remedy = match kind {
            MeterErrorKind::Retry => "the span is recorded as a gap until the counter can be read again",
            MeterErrorKind::Gone => "it is no longer counted; restart the run once the processor is back",
            MeterErrorKind::Fatal => "give back the permission to read it and restart the run",
        };
        MeterError {
            sensor: self.domain[0].sensor,
            kind,
            message: format!("{}: {what}", self.register.name()),
            remedy: remedy.into(),
        }
    }
}

impl Meter for RegisterMeter {
    fn domains(&self) -> &[Domain] {
        &self.domain
    }

    fn update_period(&self) -> Duration {
        // The registers update about every millisecond: fresh beside any window worth measuring.
        Duration::ZERO
    }

    fn read(&mut self, now: Duration) -> Result<Reading, MeterError> {
        // A clock that goes back would make two spans of one.
        let now = self.last_try.max(now);
        self.last_try = now;
        let raw = self
            .register
            .read()
            .map_err(|error| self.failure(kind_of(&self.register, &error), &error.to_string()))?;
        let cpu_time = (self.cpu_time)().unwrap_or_default();
        let mut reading = Reading::default();
        match self.newest {
            // A repeated value is not entered: what comes after it is judged by the whole time since the last change.
            Some((newest, since, cpu_then)) if newest == raw => {
                let (spent, stood) = (cpu_time.saturating_sub(cpu_then), now.saturating_sub(since));
                if spent.min(stood) >= STUCK_AFTER_CPU_TIME {
                    let what =
                        format!("stuck at {raw} uJ for {stood:.1?} while {spent:.1?} of CPU time passed");
                    return Err(self.failure(MeterErrorKind::Retry, &what));
                }
            }
            _ => {
                self.newest = Some((raw, now, cpu_time));
                if let Some((event, span)) = self.tracker.advance(now, raw) {
                    reading.notes.push(Note { domain: 0, event, span });
                }
            }
        }
        reading.cumulative.push(self.tracker.cumulative());
        Ok(reading)
    }
}

/// What a failed reading means.
pub(super) fn kind_of(register: &Register, error: &io::Error) -> MeterErrorKind {
    match (error.raw_os_error(), error.kind(), register) {
        (Some(libc::ENODEV | libc::ENXIO), _, _) | (_, io::ErrorKind::NotFound, _) => MeterErrorKind::Gone,
        // An event whose processor was unplugged reads as an empty file.
        (_, io::ErrorKind::UnexpectedEof, Register::Event { .. }) => MeterErrorKind::Gone,
        (_, io::ErrorKind::PermissionDenied, _) => MeterErrorKind::Fatal,
        _ => MeterErrorKind::Retry,
    }
}
