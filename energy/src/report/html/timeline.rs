//! The time in which a run ran: wall time less the pauses between its segments.
//!
//! A run that was stopped for three days would be two slivers at the ends of an empty plot. Plots are drawn over
//! running time, and a restart is a mark in them. Ranks that ran side by side share their time.

use jiff::Timestamp;

use crate::report::SegmentReport;

/// The spans of wall time in which at least one segment ran, end to end.
pub(super) struct Timeline {
    spans: Vec<Span>,
    /// The sum of the spans.
    pub(super) seconds: f64,
    /// The running time at which each segment began.
    pub(super) starts: Vec<f64>,
}

/// When a segment ran.
struct Lifetime {
    rank: u32,
    from_ms: f64,
    seconds: f64,
}

impl Lifetime {
    fn until_ms(&self) -> f64 {
        self.from_ms + self.seconds * 1e3
    }
}

struct Span {
    from_ms: f64,
    until_ms: f64,
    /// Running time at its start.
    offset_seconds: f64,
}

impl Timeline {
    /// Of segments in the order of rank and number.
    pub(super) fn new(segments: &[SegmentReport]) -> Self {
        let lifetimes = segments.iter().map(|segment| Lifetime {
            rank: segment.rank,
            from_ms: segment.started_at.as_millisecond() as f64,
            // The time inside its windows, from a clock that does not jump.
            seconds: segment.duration.0,
        });
        Self::of_lifetimes(lifetimes.collect())
    }

    fn of_lifetimes(mut lifetimes: Vec<Lifetime>) -> Self {
        for index in 1..lifetimes.len() {
            let before = &lifetimes[index - 1];
            let (rank, until_ms) = (before.rank, before.until_ms());
            let own = &mut lifetimes[index];
            if own.rank == rank {
                // A rank runs one segment at a time; if it seems otherwise, the wall clock was set back.
                own.from_ms = own.from_ms.max(until_ms);
            }
        }
        let mut by_time: Vec<&Lifetime> = lifetimes.iter().collect();
        by_time.sort_by(|a, b| a.from_ms.total_cmp(&b.from_ms));
        let mut spans: Vec<Span> = Vec::new();
        let mut seconds = 0.0;
        for lifetime in by_time {
            let until_ms = lifetime.until_ms();
            match spans.last_mut() {
                Some(last) if lifetime.from_ms <= last.until_ms => {
                    seconds += (until_ms - last.until_ms).max(0.0) / 1e3;
                    last.until_ms = last.until_ms.max(until_ms);
                }
                _ => {
                    spans.push(Span { from_ms: lifetime.from_ms, until_ms, offset_seconds: seconds });
                    seconds += lifetime.seconds;
                }
            }
        }
        let mut timeline = Timeline { spans, seconds, starts: Vec::new() };
        timeline.starts = lifetimes.iter().map(|lifetime| timeline.seconds_at_ms(lifetime.from_ms)).collect();
        timeline
    }

    /// The running time at a moment; in a pause, that at its start.
    pub(super) fn seconds_at(&self, at: Timestamp) -> f64 {
        self.seconds_at_ms(at.as_millisecond() as f64)
    }

    fn seconds_at_ms(&self, at_ms: f64) -> f64 {
        let after = self.spans.partition_point(|span| span.from_ms <= at_ms);
        let Some(span) = after.checked_sub(1).map(|index| &self.spans[index]) else { return 0.0 };
        span.offset_seconds + (at_ms.min(span.until_ms) - span.from_ms) / 1e3
    }

    /// The moment of a running time, in milliseconds since 1970.
    pub(super) fn wall_ms(&self, seconds: f64) -> i64 {
        let after = self.spans.partition_point(|span| span.offset_seconds <= seconds);
        let Some(span) = after.checked_sub(1).map(|index| &self.spans[index]) else { return 0 };
        (span.from_ms + (seconds - span.offset_seconds) * 1e3).min(span.until_ms).round() as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of ranks with their starts and ends in seconds.
    fn timeline(lifetimes: &[(u32, f64, f64)]) -> Timeline {
        let lifetime = |&(rank, from, until): &(u32, f64, f64)| Lifetime {
            rank,
            from_ms: from * 1e3,
            seconds: until - from,
        };
        Timeline::of_lifetimes(lifetimes.iter().map(lifetime).collect())
    }

    fn at(timeline: &Timeline, second: i64) -> f64 {
        timeline.seconds_at(Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn pauses_are_no_running_time() {
        let timeline = timeline(&[(0, 1000.0, 1010.0), (0, 5000.0, 5020.0)]);
        assert_eq!(timeline.seconds, 30.0);
        let places: Vec<f64> =
            [999, 1000, 1004, 1010, 3000, 5000, 5005, 9000].map(|s| at(&timeline, s)).to_vec();
        assert_eq!(places, [0.0, 0.0, 4.0, 10.0, 10.0, 10.0, 15.0, 30.0]);
        assert_eq!((timeline.wall_ms(4.0), timeline.wall_ms(15.0)), (1_004_000, 5_005_000));
    }

    #[test]
    fn ranks_side_by_side_share_their_time() {
        let timeline = timeline(&[(0, 1002.0, 1012.0), (1, 1000.0, 1010.0), (2, 1003.0, 1004.0)]);
        assert_eq!(timeline.seconds, 12.0);
        assert_eq!((at(&timeline, 1011), timeline.starts), (11.0, vec![2.0, 0.0, 3.0]));
    }

    #[test]
    fn a_clock_that_was_set_back_lays_no_segment_over_the_one_before() {
        let timeline = timeline(&[(0, 1000.0, 1010.0), (0, 1003.0, 1008.0)]);
        assert_eq!((timeline.seconds, timeline.starts), (15.0, vec![0.0, 10.0]));
    }
}
