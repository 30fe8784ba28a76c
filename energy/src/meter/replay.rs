//! A meter that plays a recorded trace: every odd sensor can be tested on a machine that has none.

use std::time::Duration;

use super::counter::CounterTracker;
use super::{CounterEvent, Domain, Meter, MeterError, MeterErrorKind, Note, Plausible, Provenance, Reading};

/// The record of one raw counter.
#[derive(Clone, Debug)]
pub struct Trace {
    /// The domain's name.
    pub domain: String,
    /// The counter's largest value before it wraps, in microjoules; `None` for one that does not.
    pub range: Option<u64>,
    /// What the hardware can draw.
    pub plausible: Plausible,
    /// Times and raw values, in order of time. `None` stands for a counter that could not be read.
    pub points: Vec<(Duration, Option<u64>)>,
}

/// Shows, at each time, the newest recorded value, as a slow counter does; before the first, the first.
#[derive(Clone, Debug)]
pub struct ReplayMeter {
    domains: Vec<Domain>,
    traces: Vec<Trace>,
    trackers: Vec<CounterTracker>,
    update_period: Duration,
}

impl ReplayMeter {
    /// Plays `traces`, whose counters were updated every `update_period` (zero: fresh at every reading).
    pub fn new(traces: Vec<Trace>, update_period: Duration) -> Self {
        let domains = traces.iter().map(|trace| Domain {
            name: trace.domain.as_str().into(),
            sensor: "replay",
            provenance: Provenance::Replayed,
        });
        let trackers = traces.iter().map(|trace| CounterTracker::new(trace.range, trace.plausible));
        ReplayMeter { domains: domains.collect(), trackers: trackers.collect(), traces, update_period }
    }
}

impl Meter for ReplayMeter {
    fn domains(&self) -> &[Domain] {
        &self.domains
    }

    fn update_period(&self) -> Duration {
        self.update_period
    }

    fn read(&mut self, now: Duration) -> Result<Reading, MeterError> {
        let mut reading = Reading::default();
        let mut unreadable = 0;
        for (domain, (trace, tracker)) in self.traces.iter().zip(&mut self.trackers).enumerate() {
            let note = match trace.shown_at(now) {
                Some(raw) => tracker.advance(now, raw),
                None => {
                    unreadable += 1;
                    Some((CounterEvent::Unreadable, Duration::ZERO))
                }
            };
            reading.notes.extend(note.map(|(event, span)| Note { domain, event, span }));
            reading.cumulative.push(tracker.cumulative());
        }
        if unreadable == self.traces.len() {
            return Err(MeterError {
                sensor: "replay",
                kind: MeterErrorKind::Retry,
                message: format!("the recorded counters could not be read at {now:?}"),
                remedy: "the span is recorded as a gap".into(),
            });
        }
        Ok(reading)
    }
}

impl Trace {
    /// The newest value at `now`, if one could be read.
    fn shown_at(&self, now: Duration) -> Option<u64> {
        let newest = self.points.partition_point(|(at, _)| *at <= now).saturating_sub(1);
        self.points.get(newest)?.1
    }
}
