//! The cumulative energy of one domain over time, and how much of it has been given to windows.
//!
//! A window is the rise of this curve between two edges. For a counter that updates slower than windows pass, the
//! edge is looked up one update period in the past, where the curve is already known on both sides, and
//! interpolated. So nothing is ever given out that the counter has not shown: windows cannot exceed the counter,
//! and what is left at the end is the remainder.

use std::collections::VecDeque;
use std::time::Duration;

use crate::units::{Joules, MicroJoules};

/// Samples kept: the lag of one update period needs a handful; the rest shows how power varies.
const MAX_SAMPLES: usize = 64;

/// Energy over time of one domain.
#[derive(Debug)]
pub(crate) struct Curve {
    /// (time, cumulative energy), both rising.
    samples: VecDeque<(Duration, u64)>,
    /// How far behind the edge the curve is looked up; zero for a counter read at the edge.
    lag: Duration,
    first: u64,
    given: u64,
}

impl Curve {
    /// A curve that starts with its first reading.
    pub(crate) fn new(lag: Duration, now: Duration, cumulative: MicroJoules) -> Self {
        let samples = VecDeque::from([(now, cumulative.0)]);
        Curve { samples, lag, first: cumulative.0, given: cumulative.0 }
    }

    /// Adds a reading.
    pub(crate) fn push(&mut self, now: Duration, cumulative: MicroJoules) {
        let (newest_time, newest) = self.newest();
        // Meters promise to rise; the bookkeeping holds even if one does not.
        let cumulative = cumulative.0.max(newest);
        if now <= newest_time {
            self.samples.pop_back();
            self.samples.push_back((newest_time, cumulative));
            return;
        }
        if self.samples.len() == MAX_SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back((now, cumulative));
    }

    /// Gives a window that ends at `edge` all energy up to there that no window has had yet.
    pub(crate) fn take_until(&mut self, edge: Duration) -> MicroJoules {
        let taken = self.until(edge);
        self.given += taken.0;
        taken
    }

    /// What a window that ended at `edge` would be given.
    pub(crate) fn until(&self, edge: Duration) -> MicroJoules {
        MicroJoules(self.reached(edge).0.saturating_sub(self.given))
    }

    /// How far the energy has come for a window that ends at `edge`.
    pub(crate) fn reached(&self, edge: Duration) -> MicroJoules {
        let lagging = || self.at(edge.saturating_sub(self.lag));
        MicroJoules(if self.lag.is_zero() { self.newest().1 } else { lagging() })
    }

    /// The newest reading.
    pub(crate) fn cumulative(&self) -> MicroJoules {
        MicroJoules(self.newest().1)
    }

    /// How late its windows are.
    pub(crate) fn lag(&self) -> Duration {
        self.lag
    }

    /// The counter's rise since the first reading.
    pub(crate) fn total(&self) -> MicroJoules {
        MicroJoules(self.newest().1 - self.first)
    }

    /// What no window has had.
    pub(crate) fn remainder(&self) -> MicroJoules {
        MicroJoules(self.newest().1 - self.given)
    }

    /// How wrong one interpolated edge may be: the spread of power times the time by which it is late.
    pub(crate) fn edge_error(&self) -> Joules {
        let powers = self
            .samples
            .iter()
            .zip(self.samples.iter().skip(1))
            .map(|((t0, e0), (t1, e1))| (e1 - e0) as f64 / 1e6 / (*t1 - *t0).as_secs_f64());
        let (low, high) =
            powers.fold((f64::INFINITY, 0.0f64), |(low, high), power| (low.min(power), high.max(power)));
        // From a single reading or two nothing is known of the spread, but that power is not negative.
        let low = if self.samples.len() > 2 { low } else { 0.0 };
        Joules((high - low) * self.lag.as_secs_f64())
    }

    fn newest(&self) -> (Duration, u64) {
        // The deque starts with one sample and `push` never leaves it empty.
        self.samples.back().copied().unwrap_or((Duration::ZERO, self.first))
    }

    /// The curve at `time`, rounded down; its ends before the oldest and after the newest sample.
    fn at(&self, time: Duration) -> u64 {
        let after = self.samples.partition_point(|(at, _)| *at <= time);
        let Some(&end) = self.samples.get(after) else { return self.newest().1 };
        let Some(before) = after.checked_sub(1) else { return end.1 };
        let start = self.samples[before];
        let earlier = before.checked_sub(1).map(|earlier| self.samples[earlier]);
        between(earlier, start, end, time)
    }
}

/// Energy at `time` between two samples. Power is a straight line whose mean is what the samples say and whose
/// start lies between the powers before and after: exact on a ramp, where steady power would be off by half its
/// change. It never goes below zero, so that the curve never falls, and a later sample changes nothing.
fn between(
    earlier: Option<(Duration, u64)>,
    (t0, e0): (Duration, u64),
    (t1, e1): (Duration, u64),
    time: Duration,
) -> u64 {
    let (rise, span) = ((e1 - e0) as f64, (t1 - t0).as_secs_f64());
    let mean = rise / span;
    let start = earlier.map_or(mean, |(t, e)| {
        let span_before = (t0 - t).as_secs_f64();
        let mean_before = (e0 - e) as f64 / span_before;
        ((mean_before * span + mean * span_before) / (span + span_before)).min(2.0 * mean)
    });
    let part = (time - t0).as_secs_f64() / span;
    let energy = span * part * (start + (mean - start) * part);
    e0 + (energy as u64).min(e1 - e0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn windows_of_50_ms_on_a_counter_of_1_hz_get_their_share_within_2_percent() {
        // 200 W for 10 s, read once a second.
        let mut curve = Curve::new(SECOND, Duration::ZERO, MicroJoules(0));
        let mut windows = Vec::new();
        for tick in 1..=200u32 {
            let now = Duration::from_millis(50) * tick;
            if tick % 20 == 0 {
                curve.push(now, MicroJoules(u64::from(tick) * 10_000_000));
            }
            windows.push(curve.take_until(now).joules().0);
        }
        // The first second is the lag; afterwards every window holds 200 W * 50 ms = 10 J.
        assert!(windows[20..].iter().all(|joules| (joules - 10.0).abs() < 0.2), "{windows:?}");
        assert_eq!(curve.remainder(), MicroJoules(200_000_000));
        assert_eq!(windows.iter().sum::<f64>() + curve.remainder().joules().0, 2000.0);
    }

    #[test]
    fn on_a_ramp_the_curve_is_exact_between_its_samples() {
        // 100 W at the start and 20 W more each second: 100 t + 10 t^2 joules.
        let energy = |t: f64| ((100.0 * t + 10.0 * t * t) * 1e6) as u64;
        let mut curve = Curve::new(SECOND, Duration::ZERO, MicroJoules(0));
        for second in 1..=4 {
            curve.push(SECOND * second, MicroJoules(energy(f64::from(second))));
        }
        for tenth in 10..40 {
            let shown = curve.at(SECOND * tenth / 10);
            assert!(shown.abs_diff(energy(f64::from(tenth) / 10.0)) <= 1, "{tenth}: {shown}");
        }
    }

    #[test]
    fn power_that_drops_falls_to_zero_and_not_below() {
        let mut curve = Curve::new(SECOND, Duration::ZERO, MicroJoules(0));
        curve.push(SECOND, MicroJoules(1_000_000_000));
        curve.push(SECOND * 2, MicroJoules(1_001_000_000));
        // From 2 W to 0 W: three quarters of the joule in the first half.
        assert_eq!(curve.at(SECOND * 3 / 2), 1_000_750_000);
    }

    #[test]
    fn a_counter_read_at_the_edge_leaves_no_remainder() {
        let mut curve = Curve::new(Duration::ZERO, Duration::ZERO, MicroJoules(5));
        curve.push(SECOND, MicroJoules(105));
        assert_eq!(curve.take_until(SECOND), MicroJoules(100));
        assert_eq!((curve.total(), curve.remainder()), (MicroJoules(100), MicroJoules(0)));
    }

    #[test]
    fn steady_power_has_no_edge_error_and_a_jump_has() {
        let mut curve = Curve::new(SECOND, Duration::ZERO, MicroJoules(0));
        curve.push(SECOND, MicroJoules(100_000_000));
        curve.push(SECOND * 2, MicroJoules(200_000_000));
        assert_eq!(curve.edge_error(), Joules(0.0));
        curve.push(SECOND * 3, MicroJoules(500_000_000));
        assert_eq!(curve.edge_error(), Joules(200.0));
    }

    proptest! {
        #[test]
        fn windows_and_remainder_add_up_to_the_counter(
            lag_ms in 0u64..1500,
            steps in prop::collection::vec((0u64..400, 0u64..90_000_000, prop::bool::ANY), 1..300),
        ) {
            let mut curve = Curve::new(Duration::from_millis(lag_ms), Duration::ZERO, MicroJoules(7));
            let (mut now, mut counter, mut given) = (Duration::ZERO, 7, 0);
            for (ms, rise, close) in steps {
                now += Duration::from_millis(ms);
                counter += rise;
                curve.push(now, MicroJoules(counter));
                if close {
                    given += curve.take_until(now).0;
                }
                prop_assert_eq!(given + curve.remainder().0, counter - 7);
                let at = |ms| curve.at(now.saturating_sub(Duration::from_millis(ms)));
                prop_assert!(at(700) <= at(450) && at(450) <= at(449) && at(449) <= counter);
                prop_assert_eq!(curve.total().0, counter - 7);
            }
        }
    }
}
