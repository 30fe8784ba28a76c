//! The monitor's books: one track for each domain, the open window, and what went wrong.

use std::sync::Arc;
use std::time::Duration;

use super::track::{Movement, Track};
use crate::meter::trace::TraceWriter;
use crate::meter::{CounterEvent, Domain, MeterError, MeterErrorKind, Reading};
use crate::units::{Joules, MicroJoules};
use crate::window::{
    DomainEnergy, DomainTotal, EnergyTotals, Overhead, SpanEnergy, WindowEnergy, WindowKind,
    sum_and_measured_share,
};

/// Alerts kept until someone takes them.
const MAX_ALERTS: usize = 16;

/// Less than this may be the clocks' own disagreement.
const SHORTEST_SLEEP: Duration = Duration::from_millis(100);

/// A meter's answer.
type Outcome = std::result::Result<Reading, MeterError>;

/// Everything the monitor knows, under one lock.
pub(super) struct Book {
    tracks: Vec<Track>,
    /// For each source.
    pub(super) states: Vec<SourceState>,
    recorder: Option<TraceWriter>,
    started: Duration,
    window_start: Duration,
    windows: u64,
    counts: Counts,
    /// Spans so far whose energy is in doubt.
    doubts: u64,
    doubts_before_window: u64,
    gap: Duration,
    /// The time asleep that has been noticed.
    asleep: Duration,
    pub(super) closing_cpu: Duration,
    pub(super) alerts: Vec<MeterError>,
}

/// How often each irregularity was seen.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    wraps: u64,
    resets: u64,
    spikes: u64,
    stuck_readings: u64,
    out_of_order: u64,
    sleeps: u64,
}

/// How a source is doing.
#[derive(Clone, Copy, Debug)]
pub(super) struct SourceState {
    pub(super) last_try: Duration,
    /// The machine's time asleep at the last reading.
    asleep: Duration,
    failing: bool,
    pub(super) gone: bool,
}

/// When a reading was taken: between two looks at the time the machine slept, so that a sleep amid the reading is
/// seen too.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    pub(super) at: Duration,
    pub(super) asleep_before: Duration,
    pub(super) asleep_after: Duration,
}

/// Where a span begins.
#[derive(Debug)]
pub(super) struct SpanStart {
    at: Duration,
    /// For each track.
    reached: Vec<MicroJoules>,
    doubts: u64,
}

/// The energy between two edges.
struct Balance {
    domains: Vec<DomainEnergy>,
    error_bound: Option<Joules>,
    complete: bool,
}

impl Book {
    /// Empty books of a measurement that starts now.
    pub(super) fn new(started: Duration, asleep: Duration) -> Self {
        Book {
            tracks: Vec::new(),
            states: Vec::new(),
            recorder: None,
            started,
            window_start: started,
            windows: 0,
            counts: Counts::default(),
            doubts: 0,
            doubts_before_window: 0,
            gap: Duration::ZERO,
            asleep,
            closing_cpu: Duration::ZERO,
            alerts: Vec::new(),
        }
    }

    /// Adds a source with its first reading. It has news once in `period`; its windows are looked up `lag` in the
    /// past.
    pub(super) fn add_source(
        &mut self,
        domains: &[Domain],
        (period, lag): (Duration, Duration),
        taken: Taken,
        first: &Reading,
    ) {
        let source = self.states.len();
        self.states.push(SourceState {
            last_try: taken.at,
            asleep: taken.asleep_before,
            failing: false,
            gone: false,
        });
        for (index, (domain, cumulative)) in domains.iter().zip(&first.cumulative).enumerate() {
            let mut track = Track::new(source, domain.clone(), (period, lag), taken.at, *cumulative);
            track.failing = is_unreadable(first, index);
            self.tracks.push(track);
        }
    }

    /// Writes every reading from here on, the first included.
    pub(super) fn record_to(&mut self, mut recorder: TraceWriter) {
        let first = self.tracks.iter().map(|track| {
            let shown = track.curve.cumulative().0;
            (track.last_reading, (!track.failing).then_some(shown))
        });
        let written = recorder
            .write(first.enumerate().map(|(index, (at, raw))| (index, at.saturating_sub(self.started), raw)));
        self.recorder = Some(recorder);
        self.settle_recording(written);
    }

    /// The domains with how often they have news, for the head of a recording.
    pub(super) fn domains(&self) -> impl Iterator<Item = (&Domain, Duration)> {
        self.tracks.iter().map(|track| (&track.domain, track.period()))
    }

    /// The sensors in short: `nvml+rapl`, `model`, `none`.
    pub(super) fn source_label(&self) -> String {
        let mut sensors: Vec<&str> = Vec::new();
        for track in &self.tracks {
            if !sensors.contains(&track.domain.sensor) {
                sensors.push(track.domain.sensor);
            }
        }
        if sensors.is_empty() { "none".into() } else { sensors.join("+") }
    }

    /// Enters a reading or its failure.
    pub(super) fn enter(&mut self, source: usize, taken: Taken, outcome: Outcome) {
        self.states[source].last_try = taken.at;
        match outcome {
            Ok(reading) => self.enter_reading(source, taken, &reading),
            Err(error) => self.enter_failure(source, error),
        }
        if self.recorder.is_some() {
            self.record(source, taken.at);
        }
    }

    fn enter_reading(&mut self, source: usize, taken: Taken, reading: &Reading) {
        let state = &mut self.states[source];
        state.failing = false;
        let asleep = taken.asleep_after.saturating_sub(state.asleep);
        state.asleep = taken.asleep_before;
        let slept = asleep >= SHORTEST_SLEEP;
        if slept && taken.asleep_after >= self.asleep + SHORTEST_SLEEP {
            self.counts.sleeps += 1;
            self.asleep = taken.asleep_after;
        }
        let own = self.tracks.iter_mut().filter(|track| track.source == source);
        for (index, (track, cumulative)) in own.zip(&reading.cumulative).enumerate() {
            let mut notes = reading.notes.iter().filter(|note| note.domain == index).peekable();
            if is_unreadable(reading, index) {
                if !std::mem::replace(&mut track.failing, true) && self.alerts.len() < MAX_ALERTS {
                    self.alerts.push(track.unreadable_alert());
                }
                continue;
            }
            for note in reading.notes.iter().filter(|note| note.domain == index) {
                if track.share(taken.at, note.event) && self.alerts.len() < MAX_ALERTS {
                    self.alerts.push(track.undivided_alert());
                }
            }
            if slept {
                // A reset or a jump over a sleep is its effect, not the sensor's.
                self.gap += track.push_after_sleep(taken.at, *cumulative) + asleep;
                self.doubts += 1;
                continue;
            }
            let noted = notes.peek().is_some();
            for note in notes {
                let doubtful = self.counts.add(note.event);
                if doubtful && !note.span.is_zero() {
                    self.gap += note.span;
                    self.doubts += 1;
                }
            }
            match track.push(taken.at, *cumulative) {
                Movement::Stuck => {
                    self.counts.stuck_readings += 1;
                    if self.alerts.len() < MAX_ALERTS {
                        self.alerts.push(track.stuck_alert(taken.at));
                    }
                }
                Movement::Repeated if !noted => self.counts.stuck_readings += 1,
                Movement::Unstuck(span) => {
                    self.gap += span;
                    self.doubts += 1;
                }
                Movement::Repeated | Movement::Risen | Movement::Early => {}
            }
        }
    }

    fn enter_failure(&mut self, source: usize, error: MeterError) {
        let state = &mut self.states[source];
        state.gone = error.kind != MeterErrorKind::Retry;
        if !state.failing && self.alerts.len() < MAX_ALERTS {
            self.alerts.push(error);
        }
        state.failing = true;
        for track in self.tracks.iter_mut().filter(|track| track.source == source) {
            track.failing = true;
        }
    }

    fn record(&mut self, source: usize, at: Duration) {
        let Some(recorder) = &mut self.recorder else { return };
        let at = at.saturating_sub(self.started);
        let own = self.tracks.iter().enumerate().filter(|(_, track)| track.source == source);
        let points =
            own.map(|(index, track)| (index, at, (!track.failing).then_some(track.curve.cumulative().0)));
        let written = recorder.write(points);
        self.settle_recording(written);
    }

    /// A recording that cannot go on ends; the measurement does not.
    fn settle_recording(&mut self, written: std::result::Result<(), MeterError>) {
        if let Err(error) = written {
            self.recorder = None;
            self.alerts.push(error);
        }
    }

    /// Ends the open window at `edge` and begins the next.
    pub(super) fn close(&mut self, kind: WindowKind, edge: Duration) -> WindowEnergy {
        let window = self.in_progress(kind, edge);
        let start = std::mem::replace(&mut self.window_start, edge);
        // What is unknown in this window joins the one that reads it again.
        for track in self.tracks.iter_mut().filter(|track| !track.is_unknown_since(start)) {
            track.curve.take_until(edge);
        }
        self.doubts_before_window = self.doubts;
        self.windows += 1;
        window
    }

    /// The open window as it would be if it ended at `edge`.
    pub(super) fn in_progress(&self, kind: WindowKind, edge: Duration) -> WindowEnergy {
        let start = self.window_start;
        let duration = edge.saturating_sub(start);
        let balance = self.balance(start, self.doubts_before_window, |index| {
            let track = &self.tracks[index];
            part(track, start, edge, track.curve.until(edge))
        });
        let Balance { domains, error_bound, complete } = balance;
        WindowEnergy::new(self.windows, kind, duration.into(), error_bound, complete, domains)
    }

    /// Begins a span at `edge`.
    pub(super) fn open_span(&self, edge: Duration) -> SpanStart {
        let reached = self.tracks.iter().map(|track| track.curve.reached(edge)).collect();
        SpanStart { at: edge, reached, doubts: self.doubts }
    }

    /// The energy from the start of a span to `edge`; windows and other spans are not touched.
    pub(super) fn close_span(&self, name: String, start: &SpanStart, edge: Duration) -> SpanEnergy {
        let duration = edge.saturating_sub(start.at);
        let balance = self.balance(start.at, start.doubts, |index| {
            let (track, before) = (&self.tracks[index], start.reached[index]);
            let reached = track.curve.reached(edge);
            part(track, start.at, edge, MicroJoules(reached.0.saturating_sub(before.0)))
        });
        let Balance { domains, error_bound, complete } = balance;
        SpanEnergy::new(name, duration.into(), error_bound, complete, domains)
    }

    /// The parts of the tracks that were read since `start`, with what is to be said of them all.
    fn balance(&self, start: Duration, doubts: u64, part: impl Fn(usize) -> DomainEnergy) -> Balance {
        let mut error_bound = None;
        let mut domains = Vec::with_capacity(self.tracks.len());
        for (index, track) in self.tracks.iter().enumerate() {
            if track.is_unknown_since(start) {
                continue;
            }
            if !track.curve.lag().is_zero() {
                // Both edges are late by the lag.
                let both = Joules(2.0 * track.curve.edge_error().0);
                error_bound = Some(error_bound.unwrap_or_default() + both);
            }
            domains.push(part(index));
        }
        let complete = doubts == self.doubts && self.tracks.iter().all(Track::is_well);
        Balance { domains, error_bound, complete }
    }

    /// The balance at `now`.
    pub(super) fn totals(&self, now: Duration, sampler_cpu: Duration) -> EnergyTotals {
        let domains: Vec<DomainTotal> = self.tracks.iter().map(Track::total).collect();
        let (total, measured_share) =
            sum_and_measured_share(domains.iter().map(|domain| (domain.provenance, domain.total)));
        let unknown: Duration = self.tracks.iter().map(|track| track.unknown_for(now)).sum();
        let Counts { wraps, resets, spikes, stuck_readings, out_of_order, sleeps } = self.counts;
        EnergyTotals {
            duration: now.saturating_sub(self.started).into(),
            windows: self.windows,
            joules: total.joules(),
            measured_share,
            domains,
            wraps,
            resets,
            spikes,
            stuck_readings,
            out_of_order,
            sleeps,
            gap: (self.gap + unknown).into(),
            tail: now.saturating_sub(self.window_start).into(),
            overhead: Overhead { sampler_cpu, closing_cpu: self.closing_cpu, ledger_cpu: Duration::ZERO },
        }
    }
}

impl Counts {
    /// Counts an event; true when it puts the energy of its span in doubt.
    fn add(&mut self, event: CounterEvent) -> bool {
        let count = match event {
            CounterEvent::Wrap => &mut self.wraps,
            CounterEvent::Reset => &mut self.resets,
            CounterEvent::Spike => &mut self.spikes,
            CounterEvent::OutOfOrder => &mut self.out_of_order,
            CounterEvent::MissedWraps | CounterEvent::Gap => return true,
            CounterEvent::Unreadable | CounterEvent::Apportioned | CounterEvent::Undivided => return false,
        };
        *count += 1;
        matches!(event, CounterEvent::Reset | CounterEvent::Spike)
    }
}

fn is_unreadable(reading: &Reading, domain: usize) -> bool {
    reading.notes.iter().any(|note| note.domain == domain && note.event == CounterEvent::Unreadable)
}

/// What a track gives to the time from `start` to `edge`.
fn part(track: &Track, start: Duration, edge: Duration, microjoules: MicroJoules) -> DomainEnergy {
    let is_short = edge.saturating_sub(start) < track.curve.lag() * 2;
    DomainEnergy {
        domain: Arc::clone(&track.domain.name),
        sensor: track.domain.sensor,
        provenance: track.provenance(start, is_short),
        microjoules,
    }
}
