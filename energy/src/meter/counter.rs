//! Telling the wrap of a counter from a reset.
//!
//! A counter that falls has either passed its range and gone on, or started anew. Adding the range after every
//! fall invents up to 262 kJ for each reset; ignoring every fall loses as much for each wrap. The power the wrap
//! would imply decides: a wrap is believed only when the hardware could have drawn it in the time that passed.

use std::time::Duration;

use super::{CounterEvent, Plausible};
use crate::units::MicroJoules;

/// Follows a raw counter and gives energy that only grows.
#[derive(Clone, Debug)]
pub struct CounterTracker {
    /// The counter goes from here to 0; `None` for one that cannot wrap in practice (64 bits).
    range: Option<u64>,
    plausible: Plausible,
    last: Option<(Duration, u64)>,
    cumulative: u64,
}

impl CounterTracker {
    /// A tracker at zero energy. `range` is the largest value before the wrap, in microjoules.
    pub fn new(range: Option<u64>, plausible: Plausible) -> Self {
        CounterTracker { range, plausible, last: None, cumulative: 0 }
    }

    /// Takes the raw value read at `now` and tells what happened since the reading before.
    pub fn advance(&mut self, now: Duration, raw: u64) -> Option<(CounterEvent, Duration)> {
        let (then, previous) = self.last.replace((now, raw))?;
        let span = now.saturating_sub(then);
        let (rise, event) = match raw.checked_sub(previous) {
            Some(rise) if self.could_draw(rise, span) => (rise, self.missed_wraps(span)),
            Some(_) => (0, Some(CounterEvent::Spike)),
            None => match self.wrapped(previous, raw) {
                Some(rise) if self.could_draw(rise, span) => {
                    (rise, self.missed_wraps(span).or(Some(CounterEvent::Wrap)))
                }
                _ => (0, Some(CounterEvent::Reset)),
            },
        };
        self.cumulative = self.cumulative.saturating_add(rise);
        event.map(|event| (event, span))
    }

    /// Energy since the first reading.
    pub fn cumulative(&self) -> MicroJoules {
        MicroJoules(self.cumulative)
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
