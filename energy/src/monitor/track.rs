//! One domain in the books: its curve, and whether its sensor can be believed at the moment.

use std::sync::Arc;
use std::time::Duration;

use super::curve::Curve;
use crate::meter::{CounterEvent, Domain, MeterError, MeterErrorKind, Provenance};
use crate::units::MicroJoules;
use crate::window::DomainTotal;

/// A counter that repeats itself is worth counting once this has passed, or its update period if that is longer.
const SHORTEST_REPEAT: Duration = Duration::from_millis(10);

/// Hardware that is switched on never draws nothing: a counter that stands still for this long, and for this many
/// of its update periods, is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(5);
const STUCK_PERIODS: u32 = 5;

/// One domain.
pub(super) struct Track {
    pub(super) source: usize,
    pub(super) domain: Domain,
    pub(super) curve: Curve,
    /// How often the sensor has news.
    period: Duration,
    /// Left out of the meter's cumulative energy: what it rose by while the machine slept.
    skipped: u64,
    pub(super) last_reading: Duration,
    last_change: Duration,
    /// It could not be read at the last try.
    pub(super) failing: bool,
    stuck: bool,
    /// The last reading that gave a share of the device.
    apportioned: Option<Duration>,
    /// The last reading that gave all of the device, though others may have a share in it.
    undivided: Option<Duration>,
}

/// What a reading says of its sensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Movement {
    Risen,
    /// The value before, though the sensor should have had news.
    Repeated,
    /// Repeated for so long that the sensor is stuck, told once.
    Stuck,
    /// Risen after it was stuck for this long: what of the time is in the rise is unknown.
    Unstuck(Duration),
    /// The value before, too soon for another.
    Early,
}

impl Track {
    pub(super) fn new(
        source: usize,
        domain: Domain,
        (period, lag): (Duration, Duration),
        now: Duration,
        first: MicroJoules,
    ) -> Self {
        Track {
            source,
            domain,
            curve: Curve::new(lag, now, first),
            period,
            skipped: 0,
            last_reading: now,
            last_change: now,
            failing: false,
            stuck: false,
            apportioned: None,
            undivided: None,
        }
    }

    /// Enters what a reading at `now` says of the sharing of the device. True when it is news that a person should
    /// hear: what is counted from here on is not ours alone.
    pub(super) fn share(&mut self, now: Duration, event: CounterEvent) -> bool {
        match event {
            CounterEvent::Apportioned => {
                self.apportioned = Some(now);
                // The share of one who does nothing stands still, and rightly.
                self.last_change = now;
                false
            }
            CounterEvent::Undivided => {
                let went_before = self.undivided.replace(now);
                went_before != Some(self.last_reading)
            }
            _ => false,
        }
    }

    /// How the energy of a window or span came about that began at `start`: the least that is known of any part of it.
    pub(super) fn provenance(&self, start: Duration, is_short: bool) -> Provenance {
        // A reading speaks of the time before it.
        let touches =
            |reading: Option<Duration>| reading.is_some_and(|at| at > start.saturating_sub(self.curve.lag()));
        match self.domain.provenance {
            _ if touches(self.undivided) => Provenance::Undivided,
            _ if touches(self.apportioned) => Provenance::Apportioned,
            Provenance::MeasuredCounter if is_short => Provenance::Interpolated,
            provenance => provenance,
        }
    }

    /// Enters a reading.
    pub(super) fn push(&mut self, now: Duration, cumulative: MicroJoules) -> Movement {
        let before = self.curve.cumulative();
        self.curve.push(now, MicroJoules(cumulative.0.saturating_sub(self.skipped)));
        self.failing = false;
        self.last_reading = now;
        let still = now.saturating_sub(self.last_change);
        if self.curve.cumulative() > before {
            self.last_change = now;
            return if std::mem::take(&mut self.stuck) { Movement::Unstuck(still) } else { Movement::Risen };
        }
        if !self.stuck && still >= STUCK_AFTER.max(self.period * STUCK_PERIODS) {
            self.stuck = true;
            return Movement::Stuck;
        }
        if still >= SHORTEST_REPEAT.max(self.period) { Movement::Repeated } else { Movement::Early }
    }

    /// Enters the first reading after a sleep and leaves out what it rose by. Gives the time awake it spans.
    pub(super) fn push_after_sleep(&mut self, now: Duration, cumulative: MicroJoules) -> Duration {
        self.skipped = cumulative.0.saturating_sub(self.curve.cumulative().0);
        let span = now.saturating_sub(self.last_reading);
        self.push(now, cumulative);
        (self.last_change, self.stuck) = (now, false);
        span
    }

    /// How often the sensor has news.
    pub(super) fn period(&self) -> Duration {
        self.period
    }

    /// How long its energy has been unknown, at `now`.
    pub(super) fn unknown_for(&self, now: Duration) -> Duration {
        match (self.failing, self.stuck) {
            (true, _) => now.saturating_sub(self.last_reading),
            (false, true) => now.saturating_sub(self.last_change),
            (false, false) => Duration::ZERO,
        }
    }

    /// True when nothing was read of it in a window that begins at `start`: its energy there is unknown, not zero.
    pub(super) fn is_unknown_since(&self, start: Duration) -> bool {
        let lag = self.curve.lag();
        (self.failing && self.last_reading + lag <= start) || (self.stuck && self.last_change + lag <= start)
    }

    /// True while it can be read and moves.
    pub(super) fn is_well(&self) -> bool {
        !self.failing && !self.stuck
    }

    /// What a person should hear when it is stuck.
    pub(super) fn stuck_alert(&self, now: Duration) -> MeterError {
        let seconds = now.saturating_sub(self.last_change).as_secs();
        self.alert(
            format!("{} has shown the same value for {seconds} s", self.domain.name),
            "its energy is unknown until it moves; if it stays so, choose another energy.meter",
        )
    }

    /// What a person should hear when all of a device is counted that others may use too.
    pub(super) fn undivided_alert(&self) -> MeterError {
        self.alert(
            format!("other processes may use {} too, and how much cannot be read", self.domain.name),
            "all of its energy is counted, as `undivided`; to be told apart they need a driver that shows the use of \
             processes, a user who may read it, and in a container the process numbers of the host (--pid=host)",
        )
    }

    /// What a person should hear when it alone of its meter cannot be read.
    pub(super) fn unreadable_alert(&self) -> MeterError {
        self.alert(
            format!("{} could not be read", self.domain.name),
            "the span is recorded as a gap until it can be read again",
        )
    }

    fn alert(&self, message: String, remedy: &str) -> MeterError {
        MeterError { sensor: self.domain.sensor, kind: MeterErrorKind::Retry, message, remedy: remedy.into() }
    }

    /// Its balance.
    pub(super) fn total(&self) -> DomainTotal {
        let (total, unattributed) = (self.curve.total(), self.curve.remainder());
        DomainTotal {
            domain: Arc::clone(&self.domain.name),
            sensor: self.domain.sensor,
            provenance: self.provenance(Duration::ZERO, false),
            total,
            attributed: MicroJoules(total.0 - unattributed.0),
            unattributed,
        }
    }
}
