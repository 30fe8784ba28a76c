//! Power integrated over time, for sensors that have no energy counter: `E = sum (P0 + P1) / 2 * (t1 - t0)`.
//!
//! Between two samples power is taken as a straight line, on the times the device itself gives where it does. One
//! power is never multiplied by a long time: samples further apart than a stated limit leave a gap.
//!
//! Sums are whole numbers of microwatts times nanoseconds, so that a long run of small parts loses nothing.

use std::time::Duration;

use super::CounterEvent;
use crate::units::{MicroJoules, Watts};

/// Samples closer than this are one sample: the time between them is mostly jitter, and dividing by it made the
/// megawatts that CodeCarbon users have seen.
const SHORTEST: Duration = Duration::from_millis(1);

/// Microwatts times nanoseconds in a microjoule, doubled: the sum holds both ends of each trapezoid.
const PARTS_PER_MICROJOULE: u128 = 2_000_000_000;

/// Integrates the power of one sensor.
#[derive(Clone, Debug)]
pub struct PowerIntegrator {
    /// Samples further apart than this are not joined.
    longest: Duration,
    max_watts: Watts,
    last: Option<(Duration, u64)>,
    /// Twice the energy, in microwatts times nanoseconds.
    parts: u128,
}

impl PowerIntegrator {
    /// An integrator at zero energy, which joins samples at most `longest` apart and leaves out those above
    /// `max_watts`.
    pub fn new(longest: Duration, max_watts: Watts) -> Self {
        PowerIntegrator { longest, max_watts, last: None, parts: 0 }
    }

    /// Takes the power drawn at `at` and tells what was wrong with it, and how long the span is whose energy is
    /// unknown for it.
    pub fn push(&mut self, at: Duration, power: Watts) -> Option<(CounterEvent, Duration)> {
        // Written so that a NaN is left out too.
        if !(power.0 >= 0.0 && power.0 <= self.max_watts.0) {
            // The line between its neighbours takes its place.
            return Some((CounterEvent::Spike, Duration::ZERO));
        }
        let microwatts = (power.0 * 1e6).round() as u64;
        let Some((then, before)) = self.last else {
            self.last = Some((at, microwatts));
            return None;
        };
        let Some(span) = at.checked_sub(then) else {
            let back = then - at;
            if back <= self.longest {
                return Some((CounterEvent::OutOfOrder, Duration::ZERO));
            }
            // The device's clock was set back: nothing joins the two times.
            self.last = Some((at, microwatts));
            return Some((CounterEvent::Gap, self.longest));
        };
        if span < SHORTEST {
            return None;
        }
        self.last = Some((at, microwatts));
        if span > self.longest {
            return Some((CounterEvent::Gap, span));
        }
        self.parts += (u128::from(before) + u128::from(microwatts)) * span.as_nanos();
        None
    }

    /// Energy since the first sample.
    pub fn cumulative(&self) -> MicroJoules {
        MicroJoules(u64::try_from(self.parts / PARTS_PER_MICROJOULE).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn check(samples: &[(u32, f64)], microjoules: u64, event: Option<(CounterEvent, Duration)>) {
        let mut integrator = PowerIntegrator::new(MS * 500, Watts(1000.0));
        let mut last = None;
        for &(ms, watts) in samples {
            last = integrator.push(MS * ms, Watts(watts));
        }
        assert_eq!(integrator.cumulative(), MicroJoules(microjoules), "{samples:?}");
        assert_eq!(last, event, "{samples:?}");
    }

    #[test]
    fn power_between_two_samples_is_a_straight_line() {
        check(&[(0, 100.0), (100, 300.0)], 20_000_000, None);
        check(&[(0, 100.0), (100, 300.0), (300, 0.0)], 50_000_000, None);
    }

    #[test]
    fn one_sample_is_no_energy() {
        check(&[(0, 700.0)], 0, None);
    }

    #[test]
    fn samples_too_far_apart_leave_a_gap_and_no_energy() {
        check(&[(0, 100.0), (501, 100.0)], 0, Some((CounterEvent::Gap, MS * 501)));
        check(&[(0, 100.0), (501, 100.0), (601, 100.0)], 10_000_000, None);
    }

    #[test]
    fn samples_of_the_same_instant_count_once() {
        check(&[(10, 100.0), (10, 900.0), (110, 100.0)], 10_000_000, None);
    }

    #[test]
    fn what_no_board_can_draw_is_left_out_and_bridged() {
        for absurd in [2.5e6, -1.0, f64::NAN, f64::INFINITY] {
            check(&[(0, 100.0), (50, absurd)], 0, Some((CounterEvent::Spike, Duration::ZERO)));
            check(&[(0, 100.0), (50, absurd), (100, 100.0)], 10_000_000, None);
        }
    }

    #[test]
    fn an_older_sample_is_left_out_and_a_clock_set_back_starts_anew() {
        let out_of_order = Some((CounterEvent::OutOfOrder, Duration::ZERO));
        check(&[(0, 100.0), (100, 100.0), (50, 900.0)], 10_000_000, out_of_order);
        let set_back = [(9000, 100.0), (9100, 100.0), (20, 100.0)];
        check(&set_back, 10_000_000, Some((CounterEvent::Gap, MS * 500)));
        check(&[&set_back[..], &[(120, 200.0)]].concat(), 25_000_000, None);
    }

    proptest! {
        #[test]
        fn the_energy_lies_between_the_lowest_and_the_highest_power_times_the_time(
            samples in prop::collection::vec((1u32..500, 0.0f64..1000.0), 2..200),
        ) {
            let mut integrator = PowerIntegrator::new(MS * 500, Watts(1000.0));
            let mut now = Duration::ZERO;
            let first = samples[0].0;
            for &(ms, watts) in &samples {
                now += MS * ms;
                prop_assert_eq!(integrator.push(now, Watts(watts)), None);
            }
            let seconds = (now - MS * first).as_secs_f64();
            let powers = samples.iter().map(|(_, watts)| *watts);
            let low = powers.clone().fold(f64::INFINITY, f64::min);
            let high = powers.fold(0.0, f64::max);
            let joules = integrator.cumulative().joules().0;
            prop_assert!(joules >= low * seconds - 1e-3 && joules <= high * seconds + 1e-3);
        }
    }
}
