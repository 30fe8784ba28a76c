//! The monitor's books: one curve for each domain, the open window, and what went wrong.

use std::sync::Arc;
use std::time::Duration;

use super::curve::Curve;
use crate::meter::{CounterEvent, Domain, MeterError, MeterErrorKind, Provenance, Reading};
use crate::units::{Joules, MicroJoules};
use crate::window::{
    DomainEnergy, DomainTotal, EnergyTotals, Overhead, WindowEnergy, WindowKind, sum_and_measured_share,
};

/// Alerts kept until someone takes them.
const MAX_ALERTS: usize = 16;

/// A meter's answer.
type Outcome = std::result::Result<Reading, MeterError>;

/// Everything the monitor knows, under one lock.
pub(super) struct Book {
    tracks: Vec<Track>,
    /// For each source.
    pub(super) states: Vec<SourceState>,
    started: Duration,
    window_start: Duration,
    windows: u64,
    resets: u64,
    spikes: u64,
    gap: Duration,
    pub(super) closing_cpu: Duration,
    pub(super) alerts: Vec<MeterError>,
}

/// One domain.
pub(super) struct Track {
    source: usize,
    domain: Domain,
    curve: Curve,
}

/// How a source is doing.
#[derive(Clone, Copy, Debug)]
pub(super) struct SourceState {
    pub(super) last_try: Duration,
    last_reading: Duration,
    failing: bool,
    pub(super) gone: bool,
}

impl Book {
    /// Empty books of a measurement that starts now.
    pub(super) fn new(started: Duration) -> Self {
        Book {
            tracks: Vec::new(),
            states: Vec::new(),
            started,
            window_start: started,
            windows: 0,
            resets: 0,
            spikes: 0,
            gap: Duration::ZERO,
            closing_cpu: Duration::ZERO,
            alerts: Vec::new(),
        }
    }

    /// Adds a source with its first reading, taken at `now`. Its windows are looked up `lag` in the past.
    pub(super) fn add_source(&mut self, domains: &[Domain], lag: Duration, now: Duration, first: &Reading) {
        let source = self.states.len();
        self.states.push(SourceState { last_try: now, last_reading: now, failing: false, gone: false });
        for (domain, cumulative) in domains.iter().zip(&first.cumulative) {
            let curve = Curve::new(lag, now, *cumulative);
            self.tracks.push(Track { source, domain: domain.clone(), curve });
        }
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
    pub(super) fn enter(&mut self, source: usize, now: Duration, outcome: Outcome) {
        let state = &mut self.states[source];
        state.last_try = now;
        match outcome {
            Ok(reading) => {
                state.last_reading = now;
                state.failing = false;
                for note in &reading.notes {
                    match note.event {
                        CounterEvent::Wrap => continue,
                        CounterEvent::Reset => self.resets += 1,
                        CounterEvent::Spike => self.spikes += 1,
                        CounterEvent::MissedWraps | CounterEvent::Gap => {}
                        CounterEvent::OutOfOrder | CounterEvent::Unreadable => continue,
                    }
                    self.gap += note.span;
                }
                let own = self.tracks.iter_mut().filter(|track| track.source == source);
                for (track, cumulative) in own.zip(reading.cumulative) {
                    track.curve.push(now, cumulative);
                }
            }
            Err(error) => {
                state.gone = error.kind != MeterErrorKind::Retry;
                if !state.failing && self.alerts.len() < MAX_ALERTS {
                    self.alerts.push(error);
                }
                state.failing = true;
            }
        }
    }

    /// Ends the open window at `edge` and begins the next.
    pub(super) fn close(&mut self, kind: WindowKind, edge: Duration) -> WindowEnergy {
        let start = std::mem::replace(&mut self.window_start, edge);
        let duration = edge.saturating_sub(start);
        let mut error_bound: Option<Joules> = None;
        let mut domains = Vec::with_capacity(self.tracks.len());
        for track in &mut self.tracks {
            let (state, lag) = (&self.states[track.source], track.curve.lag());
            // Without a reading inside the window its energy is unknown, not zero.
            if state.failing && state.last_reading + lag <= start {
                continue;
            }
            if !lag.is_zero() {
                // Both edges of the window are late by the lag.
                let both = Joules(2.0 * track.curve.edge_error().0);
                error_bound = Some(error_bound.unwrap_or_default() + both);
            }
            let short = duration < lag * 2;
            domains.push(DomainEnergy {
                domain: Arc::clone(&track.domain.name),
                sensor: track.domain.sensor,
                provenance: match track.domain.provenance {
                    Provenance::MeasuredCounter if short => Provenance::Interpolated,
                    provenance => provenance,
                },
                microjoules: track.curve.take_until(edge),
            });
        }
        let complete = self.states.iter().all(|state| !state.failing);
        let seq = self.windows;
        self.windows += 1;
        WindowEnergy::new(seq, kind, duration.into(), error_bound, complete, domains)
    }

    /// The balance at `now`.
    pub(super) fn totals(&self, now: Duration, sampler_cpu: Duration) -> EnergyTotals {
        let domains: Vec<DomainTotal> = self.tracks.iter().map(Track::total).collect();
        let (total, measured_share) =
            sum_and_measured_share(domains.iter().map(|domain| (domain.provenance, domain.total)));
        EnergyTotals {
            duration: now.saturating_sub(self.started).into(),
            windows: self.windows,
            joules: total.joules(),
            measured_share,
            domains,
            resets: self.resets,
            spikes: self.spikes,
            gap: (self.gap + self.gone_for(now)).into(),
            tail: now.saturating_sub(self.window_start).into(),
            overhead: Overhead { sampler_cpu, closing_cpu: self.closing_cpu, ledger_cpu: Duration::ZERO },
        }
    }

    /// Time without readings from sources that have left, for each of their domains.
    fn gone_for(&self, now: Duration) -> Duration {
        let states = self.tracks.iter().map(|track| &self.states[track.source]);
        states.filter(|state| state.gone).map(|state| now.saturating_sub(state.last_reading)).sum()
    }
}

impl Track {
    fn total(&self) -> DomainTotal {
        let (total, unattributed) = (self.curve.total(), self.curve.remainder());
        DomainTotal {
            domain: Arc::clone(&self.domain.name),
            sensor: self.domain.sensor,
            provenance: self.domain.provenance,
            total,
            attributed: MicroJoules(total.0 - unattributed.0),
            unattributed,
        }
    }
}
