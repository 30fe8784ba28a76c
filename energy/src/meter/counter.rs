//! Telling the wrap of a counter from a reset, a spike and a reading that came out of order.
//!
//! A counter that falls has either passed its range and gone on, or started anew. Adding the range after every
//! fall invents up to 262 kJ for each reset; ignoring every fall loses as much for each wrap. The power the wrap
//! would imply decides: a wrap is believed only when the hardware could have drawn it in the time that passed.
//!
//! Any other jump is doubted: either the value is wrong (a glitch, an older value shown once more), or the counter
//! has moved for good (a reset). The next reading decides, and where both would do, the smaller rise is taken, so
//! that a doubt never invents energy.

use std::time::Duration;

use super::{CounterEvent, Plausible};
use crate::units::MicroJoules;

/// Follows a raw counter and gives energy that only grows.
#[derive(Clone, Debug)]
pub struct CounterTracker {
    /// The counter goes from here to 0; `None` for one that cannot wrap in practice (64 bits).
    range: Option<u64>,
    plausible: Plausible,
    /// The newest value that is believed.
    trusted: Option<Sample>,
    /// A newer value that did not follow from it.
    doubted: Option<Sample>,
    cumulative: u64,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Duration,
    raw: u64,
}

impl CounterTracker {
    /// A tracker at zero energy. `range` is the largest value before the wrap, in microjoules.
    pub fn new(range: Option<u64>, plausible: Plausible) -> Self {
        CounterTracker { range, plausible, trusted: None, doubted: None, cumulative: 0 }
    }

    /// Takes the raw value in microjoules read at `now` and tells what happened since the reading before, and how
    /// long the span is that it puts in doubt.
    pub fn advance(&mut self, now: Duration, raw: u64) -> Option<(CounterEvent, Duration)> {
        let sample = Sample { at: now, raw };
        let Some(trusted) = self.trusted else {
            self.trusted = Some(sample);
            return None;
        };
        let before = self.doubted.unwrap_or(trusted);
        let Some(span) = now.checked_sub(before.at) else {
            return Some((CounterEvent::OutOfOrder, Duration::ZERO));
        };
        if self.doubted.is_some_and(|doubted| doubted.raw == raw) {
            // The same reading once more: a glitch and a reset still look alike.
            return None;
        }
        let (rise, event) = match self.doubted {
            None => self.follow(trusted, sample, span),
            Some(doubted) => self.settle(trusted, doubted, sample, span),
        };
        match rise {
            Some(rise) => {
                self.cumulative = self.cumulative.saturating_add(rise);
                (self.trusted, self.doubted) = (Some(sample), None);
            }
            None => self.doubted = Some(sample),
        }
        event.map(|event| (event, span))
    }

    /// Energy since the first reading.
    pub fn cumulative(&self) -> MicroJoules {
        MicroJoules(self.cumulative)
    }

    /// The rise from a value that is believed; none when the new value has to be doubted.
    fn follow(&self, from: Sample, to: Sample, span: Duration) -> (Option<u64>, Option<CounterEvent>) {
        if let Some(rise) = self.rise(from, to) {
            return (Some(rise), self.missed_wraps(span));
        }
        if to.raw > from.raw {
            return (None, Some(CounterEvent::Spike));
        }
        if let Some(rise) = self.wrapped(from.raw, to.raw).filter(|rise| self.could_draw(*rise, span)) {
            return (Some(rise), self.missed_wraps(span).or(Some(CounterEvent::Wrap)));
        }
        // A counter that started anew shows what was drawn since; one that shows an older value is near the old.
        let older = !self.could_draw(to.raw, span) && self.could_draw(from.raw - to.raw, span);
        (None, Some(if older { CounterEvent::OutOfOrder } else { CounterEvent::Reset }))
    }

    /// The rise after a doubted value: from the value before it if that was a glitch, from it if it was not.
    fn settle(
        &self,
        trusted: Sample,
        doubted: Sample,
        to: Sample,
        span: Duration,
    ) -> (Option<u64>, Option<CounterEvent>) {
        let (after_glitch, after_move) = (self.rise(trusted, to), self.rise(doubted, to));
        match (after_glitch, after_move) {
            // Not even a wrap is believed beside a doubt.
            (None, None) => match self.follow(trusted, to, span).1 {
                Some(CounterEvent::Wrap) => (None, Some(CounterEvent::Reset)),
                event => (None, event),
            },
            // An older value that stayed was a reset after all.
            (None, Some(rise)) if doubted.raw < trusted.raw && !self.could_draw(doubted.raw, span) => {
                (Some(rise), Some(CounterEvent::Reset))
            }
            (Some(rise), None) | (None, Some(rise)) => (Some(rise), self.missed_wraps(span)),
            (Some(glitch), Some(moved)) => (Some(glitch.min(moved)), self.missed_wraps(span)),
        }
    }

    /// The plain rise between two values, if the hardware could have drawn it.
    fn rise(&self, from: Sample, to: Sample) -> Option<u64> {
        let rise = to.raw.checked_sub(from.raw)?;
        self.could_draw(rise, to.at.saturating_sub(from.at)).then_some(rise)
    }

    fn wrapped(&self, previous: u64, raw: u64) -> Option<u64> {
        let to_the_top = self.range?.checked_sub(previous)?;
        // The step from the top to 0 is one unit of the counter.
        to_the_top.checked_add(raw)?.checked_add(1)
    }

    fn could_draw(&self, microjoules: u64, span: Duration) -> bool {
        let seconds = (span + self.plausible.update_slack).as_secs_f64();
        microjoules as f64 <= self.plausible.max_watts.0 * seconds * 1e6
    }

    fn missed_wraps(&self, span: Duration) -> Option<CounterEvent> {
        let shortest_wrap_s = self.range? as f64 / 1e6 / self.plausible.max_watts.0;
        (span.as_secs_f64() > shortest_wrap_s).then_some(CounterEvent::MissedWraps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Watts;

    /// The range of many Intel packages, in microjoules.
    const RANGE: u64 = 262_143_328_850;
    const PLAUSIBLE: Plausible =
        Plausible { max_watts: Watts(1000.0), update_slack: Duration::from_millis(50) };

    fn check(range: Option<u64>, readings: &[(u64, u64)], expect: u64, event: Option<CounterEvent>) {
        let mut tracker = CounterTracker::new(range, PLAUSIBLE);
        let mut last = None;
        for &(ms, raw) in readings {
            last = tracker.advance(Duration::from_millis(ms), raw).map(|(event, _)| event);
        }
        assert_eq!(tracker.cumulative(), MicroJoules(expect), "{readings:?}");
        assert_eq!(last, event, "{readings:?}");
    }

    #[test]
    fn a_rise_is_counted() {
        check(Some(RANGE), &[(0, 500), (100, 10_000_500)], 10_000_000, None);
    }

    #[test]
    fn a_fall_from_near_the_top_is_a_wrap() {
        let readings = [(0, RANGE - 4_000_000), (100, 5_999_999)];
        check(Some(RANGE), &readings, 10_000_000, Some(CounterEvent::Wrap));
    }

    #[test]
    fn a_fall_from_the_middle_is_a_reset_and_invents_nothing() {
        check(Some(RANGE), &[(0, RANGE / 2), (100, 3)], 0, Some(CounterEvent::Reset));
    }

    #[test]
    fn a_counter_without_range_never_wraps() {
        check(None, &[(0, u64::MAX - 10), (100, 5)], 0, Some(CounterEvent::Reset));
    }

    #[test]
    fn counting_goes_on_after_a_reset() {
        check(None, &[(0, 9_000_000), (100, 5), (200, 2_000_005)], 2_000_000, None);
    }

    #[test]
    fn a_megawatt_is_an_artefact() {
        check(None, &[(0, 0), (100, 250_000_000_000)], 0, Some(CounterEvent::Spike));
    }

    #[test]
    fn a_spike_that_falls_back_loses_nothing_and_invents_nothing() {
        let readings = [(0, 0), (100, 250_000_000_000), (200, 20_000_000)];
        check(Some(RANGE), &readings, 20_000_000, None);
        // The fall back from near the top of the range is no wrap.
        check(Some(RANGE), &[(0, 0), (100, RANGE - 5), (200, 20_000_000)], 20_000_000, None);
    }

    #[test]
    fn after_a_jump_that_stays_only_the_rise_beyond_it_counts() {
        let readings = [(0, 0), (100, 250_000_000_000), (200, 250_010_000_000)];
        check(None, &readings, 10_000_000, None);
    }

    #[test]
    fn an_older_value_shown_once_more_invents_nothing() {
        let second = 1_000_000_000;
        let early = [(0, second), (100, second + 30_000_000), (200, second + 20_000_000)];
        check(None, &early, 30_000_000, Some(CounterEvent::OutOfOrder));
        let whole = [&early[..], &[(300, second + 50_000_000)]].concat();
        check(None, &whole, 50_000_000, None);
    }

    #[test]
    fn a_wrong_value_that_is_read_twice_is_still_no_reset() {
        let second = 1_000_000_000;
        let readings = [(0, second), (50, 7), (100, 7), (150, second + 10_000_000)];
        check(None, &readings, 10_000_000, None);
    }

    #[test]
    fn an_older_value_that_stays_was_a_reset() {
        let second = 1_000_000_000;
        let readings = [(0, second), (100, second - 20_000_000), (200, second - 15_000_000)];
        check(None, &readings, 5_000_000, Some(CounterEvent::Reset));
    }

    #[test]
    fn a_reading_from_before_the_last_is_left_out() {
        let readings = [(0, 0), (200, 20_000_000), (100, 10_000_000)];
        check(None, &readings, 20_000_000, Some(CounterEvent::OutOfOrder));
    }

    #[test]
    fn a_coarse_counter_may_bring_its_energy_at_once() {
        // 20 mJ one millisecond after the last reading is 20 W: plausible only with the slack of 50 ms.
        check(None, &[(0, 0), (1, 20_000)], 20_000, None);
    }

    #[test]
    fn readings_too_far_apart_are_called_a_lower_bound() {
        let five_minutes = 300_000;
        check(Some(RANGE), &[(0, 0), (five_minutes, 7)], 7, Some(CounterEvent::MissedWraps));
    }
}
