//! Monotonic time, real or turned by hand, and CPU time.
//!
//! Wall time jumps (NTP, daylight saving); windows and counters are timed on this clock only.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A monotonic clock that counts from its own start.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System(Instant),
    Manual(Arc<AtomicU64>),
}

/// Turns a manual clock.
#[derive(Clone, Debug)]
pub struct ClockHand(Arc<AtomicU64>);

impl Clock {
    /// The system's monotonic clock, starting now.
    pub fn system() -> Self {
        Clock(Source::System(Instant::now()))
    }

    /// A clock that stands still until its hand is turned: for tests and for replaying recorded runs.
    pub fn manual() -> (Self, ClockHand) {
        let nanos = Arc::new(AtomicU64::new(0));
        (Clock(Source::Manual(Arc::clone(&nanos))), ClockHand(nanos))
    }

    /// Time since the clock's start.
    pub fn now(&self) -> Duration {
        match &self.0 {
            Source::System(start) => start.elapsed(),
            Source::Manual(nanos) => Duration::from_nanos(nanos.load(Ordering::Acquire)),
        }
    }
}

impl ClockHand {
    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_add(nanos, Ordering::AcqRel);
    }
}

/// CPU time, user and system, that this process has used.
pub(crate) fn process_cpu_time() -> io::Result<Duration> {
    cpu_time(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// CPU time of the calling thread, for the account of our own cost; zero where the system does not tell.
pub(crate) fn thread_cpu_time() -> Duration {
    cpu_time(libc::CLOCK_THREAD_CPUTIME_ID).unwrap_or_default()
}

fn cpu_time(clock: libc::clockid_t) -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for one timespec, and the call keeps no pointer to it.
    match unsafe { libc::clock_gettime(clock, &mut time) } {
        0 => Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32)),
        _ => Err(io::Error::last_os_error()),
    }
}
