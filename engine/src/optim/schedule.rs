//! The learning rate as a function of the tokens seen.

use std::f64::consts::PI;

use super::config::{ScheduleConfig, ScheduleKind};
use crate::config::TokenCount;

impl ScheduleConfig {
    /// The learning rate of the step after which `tokens` tokens of `max_tokens` have been trained on; `peak`
    /// is the largest.
    ///
    /// The step's own tokens are counted in, so that the first step of a warm-up is not wasted on a rate of 0
    /// and the last step of the run has the final rate. The budget is in tokens and not in steps, so that a
    /// change of the batch size leaves the shape alone.
    pub fn learning_rate_at(&self, tokens: u64, max_tokens: TokenCount, peak: f64) -> f64 {
        let (warmup, max) = (self.warmup_tokens.get(), max_tokens.get());
        let tokens = tokens.min(max);
        if tokens < warmup {
            return peak * tokens as f64 / warmup as f64;
        }
        let floor = self.final_fraction;
        let fraction = match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Cosine => {
                floor + (1.0 - floor) * 0.5 * (1.0 + (PI * progress(tokens, warmup, max)).cos())
            }
            ScheduleKind::Linear => 1.0 - (1.0 - floor) * progress(tokens, warmup, max),
            ScheduleKind::Wsd => {
                let decay_start = max.saturating_sub(self.decay_tokens(max_tokens).get()).max(warmup);
                1.0 - (1.0 - floor) * progress(tokens, decay_start, max)
            }
        };
        peak * fraction
    }
}

/// How far `tokens` is on the way from `start` to `end`, from 0 to 1; an empty way has not begun.
fn progress(tokens: u64, start: u64, end: u64) -> f64 {
    if tokens <= start || end <= start { 0.0 } else { (tokens - start) as f64 / (end - start) as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEAK: f64 = 2e-3;
    const MAX: TokenCount = TokenCount::new(1000);

    fn schedule(kind: ScheduleKind) -> ScheduleConfig {
        ScheduleConfig { kind, warmup_tokens: TokenCount::new(100), ..ScheduleConfig::default() }
    }

    #[track_caller]
    fn check(schedule: &ScheduleConfig, points: &[(u64, f64)]) {
        for &(tokens, fraction) in points {
            let rate = schedule.learning_rate_at(tokens, MAX, PEAK);
            let expected = PEAK * fraction;
            assert!(
                (rate - expected).abs() < 1e-15,
                "{:?} at {tokens}: {rate} is not {expected}",
                schedule.kind
            );
        }
    }

    #[test]
    fn every_shape_warms_up_linearly_from_the_first_step() {
        for kind in [ScheduleKind::Wsd, ScheduleKind::Cosine, ScheduleKind::Constant, ScheduleKind::Linear] {
            check(&schedule(kind), &[(1, 0.01), (50, 0.5), (99, 0.99), (100, 1.0)]);
        }
    }

    #[test]
    fn wsd_is_stable_until_the_last_fifth_and_then_falls_linearly() {
        check(&schedule(ScheduleKind::Wsd), &[(500, 1.0), (800, 1.0), (900, 0.55), (1000, 0.1), (2000, 0.1)]);
    }

    #[test]
    fn wsd_decays_over_the_tokens_it_is_told() {
        let short = ScheduleConfig { decay_tokens: TokenCount::new(100), ..schedule(ScheduleKind::Wsd) };
        check(&short, &[(900, 1.0), (950, 0.55), (1000, 0.1)]);
    }

    #[test]
    fn cosine_is_half_way_down_in_the_middle() {
        check(&schedule(ScheduleKind::Cosine), &[(550, 0.55), (1000, 0.1), (2000, 0.1)]);
        // A quarter of the way: 0.1 + 0.9 * (1 + cos(pi / 4)) / 2.
        check(&schedule(ScheduleKind::Cosine), &[(325, 0.1 + 0.45 * (1.0 + 0.5_f64.sqrt()))]);
    }

    #[test]
    fn linear_falls_evenly_and_constant_does_not_fall() {
        check(&schedule(ScheduleKind::Linear), &[(325, 0.775), (550, 0.55), (1000, 0.1)]);
        check(&schedule(ScheduleKind::Constant), &[(325, 1.0), (1000, 1.0), (2000, 1.0)]);
    }

    #[test]
    fn a_warmup_as_long_as_the_run_never_decays() {
        for kind in [ScheduleKind::Wsd, ScheduleKind::Cosine, ScheduleKind::Linear] {
            let schedule = ScheduleConfig { warmup_tokens: MAX, ..schedule(kind) };
            check(&schedule, &[(500, 0.5), (1000, 1.0)]);
        }
    }
}
