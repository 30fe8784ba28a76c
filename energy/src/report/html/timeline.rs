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
}

struct Span {
    from_ms: f64,
    until_ms: f64,
    /// Running time at its start.
    offset_seconds: f64,
}

impl Timeline {
    pub(super) fn new(segments: &[SegmentReport]) -> Self {
        // By the time inside their windows, which comes from a clock that does not jump.
        let mut lifetimes: Vec<(f64, f64)> = segments
            .iter()
            .map(|segment| {
                let from_ms = segment.started_at.as_millisecond() as f64;
                (from_ms, from_ms + segment.duration.0 * 1e3)
            })
            .collect();
        lifetimes.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut spans: Vec<Span> = Vec::new();
        let mut seconds = 0.0;
        for (from_ms, until_ms) in lifetimes {
            match spans.last_mut() {
                Some(last) if from_ms <= last.until_ms => {
                    seconds += (until_ms - last.until_ms).max(0.0) / 1e3;
                    last.until_ms = last.until_ms.max(until_ms);
                }
                _ => {
                    spans.push(Span { from_ms, until_ms, offset_seconds: seconds });
                    seconds += (until_ms - from_ms) / 1e3;
                }
            }
        }
        Timeline { spans, seconds }
    }

    /// The running time at a moment; in a pause, that at its start.
    pub(super) fn seconds_at(&self, at: Timestamp) -> f64 {
        let at_ms = at.as_millisecond() as f64;
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
