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
    System { start: Instant, asleep_before: Duration },
    Manual(Arc<ManualTime>),
}

/// Turns a manual clock.
#[derive(Clone, Debug)]
pub struct ClockHand(Arc<ManualTime>);

#[derive(Debug, Default)]
struct ManualTime {
    awake_ns: AtomicU64,
    asleep_ns: AtomicU64,
}

impl Clock {
    /// The system's monotonic clock, starting now.
    pub fn system() -> Self {
        Clock(Source::System { start: Instant::now(), asleep_before: asleep_since_boot() })
    }

    /// A clock that stands still until its hand is turned: for tests and for replaying recorded runs.
    pub fn manual() -> (Self, ClockHand) {
        let time = Arc::new(ManualTime::default());
        (Clock(Source::Manual(Arc::clone(&time))), ClockHand(time))
    }

    /// Time since the clock's start; it stands still while the machine sleeps.
    pub fn now(&self) -> Duration {
        match &self.0 {
            Source::System { start, .. } => start.elapsed(),
            Source::Manual(time) => Duration::from_nanos(time.awake_ns.load(Ordering::Acquire)),
        }
    }

    /// Time since the clock's start that the machine slept.
    pub fn asleep(&self) -> Duration {
        match &self.0 {
            Source::System { asleep_before, .. } => asleep_since_boot().saturating_sub(*asleep_before),
            Source::Manual(time) => Duration::from_nanos(time.asleep_ns.load(Ordering::Acquire)),
        }
    }
}

impl ClockHand {
    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        add(&self.0.awake_ns, by);
    }

    /// Puts the machine to sleep for a while: the clock stands still.
    pub fn sleep(&self, time: Duration) {
        add(&self.0.asleep_ns, time);
    }
}

fn add(nanos: &AtomicU64, by: Duration) {
    nanos.fetch_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX), Ordering::AcqRel);
}

/// Time since boot less time awake since boot; zero where the system does not tell.
#[cfg(target_os = "linux")]
fn asleep_since_boot() -> Duration {
    const CLOSE: Duration = Duration::from_millis(1);
    let mut asleep = Duration::ZERO;
    // Where the thread was held up between the readings they do not belong together.
    for _ in 0..8 {
        let clocks = [libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME, libc::CLOCK_MONOTONIC].map(read);
        let [Ok(before), Ok(since_boot), Ok(after)] = clocks else { break };
        asleep = since_boot.saturating_sub(after);
        if after.saturating_sub(before) < CLOSE {
            break;
        }
    }
    asleep
}

/// Other systems do not tell: there a sleep looks like a reset or like nothing.
#[cfg(not(target_os = "linux"))]
fn asleep_since_boot() -> Duration {
    Duration::ZERO
}

/// CPU time, user and system, that this process has used.
pub(crate) fn process_cpu_time() -> io::Result<Duration> {
    read(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// CPU time of the calling thread, for the account of our own cost; zero where the system does not tell.
pub(crate) fn thread_cpu_time() -> Duration {
    read(libc::CLOCK_THREAD_CPUTIME_ID).unwrap_or_default()
}

fn read(clock: libc::clockid_t) -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for one timespec, and the call keeps no pointer to it.
    match unsafe { libc::clock_gettime(clock, &mut time) } {
        0 => Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32)),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_is_told_apart_from_time_awake() {
        let (clock, hand) = Clock::manual();
        hand.advance(Duration::from_secs(2));
        hand.sleep(Duration::from_secs(3600));
        assert_eq!((clock.now(), clock.asleep()), (Duration::from_secs(2), Duration::from_secs(3600)));
    }

    #[test]
    fn a_machine_that_runs_a_test_does_not_sleep() {
        let clock = Clock::system();
        let started = clock.now();
        while clock.now() < started + Duration::from_millis(2) {}
        assert!(clock.asleep() < Duration::from_secs(1), "{:?}", clock.asleep());
    }
}
