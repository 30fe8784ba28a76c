//! The monitor: a thread that samples the meters, and windows that follow each other without gap or overlap.
//!
//! A window ends where the next begins, so every joule falls into exactly one, and windows plus remainder equal
//! the counters to the last microjoule. Meters whose readings are always fresh are read at the edge itself; slow
//! ones only by the sampler, and their windows are interpolated (see `curve`).

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::Clock;
use crate::config::EnergyConfig;
use crate::curve::Curve;
use crate::error::{Error, Result};
use crate::meter::detect::detect;
use crate::meter::{CounterEvent, Domain, Meter, MeterError, MeterErrorKind, Provenance, Reading};
use crate::units::{Joules, MicroJoules, Seconds};
use crate::window::{
    DomainEnergy, DomainTotal, EnergyTotals, Overhead, WindowEnergy, WindowKind, sum_and_measured_share,
};

/// Alerts kept until someone takes them.
const MAX_ALERTS: usize = 16;

type Outcome = std::result::Result<Reading, MeterError>;

/// Counts energy from its start until it is finished or dropped.
#[derive(Debug)]
pub struct EnergyMonitor {
    shared: Arc<Shared>,
    sampler: Option<JoinHandle<()>>,
    source_label: String,
}

/// How a monitor is to be set up.
pub struct EnergyMonitorBuilder {
    meters: Vec<Box<dyn Meter>>,
    interval: Duration,
    clock: Clock,
    with_sampler: bool,
}

struct Shared {
    clock: Clock,
    /// Lock order: a source, then the book.
    sources: Vec<Source>,
    book: Mutex<Book>,
    stop: Mutex<bool>,
    stopped: Condvar,
    sampler_cpu_ns: AtomicU64,
}

struct Source {
    meter: Mutex<Box<dyn Meter>>,
    /// Zero: read at every edge and every interval. Otherwise: read by the sampler, once per period.
    period: Duration,
}

struct Book {
    tracks: Vec<Track>,
    /// For each source.
    states: Vec<SourceState>,
    started: Duration,
    window_start: Duration,
    windows: u64,
    resets: u64,
    spikes: u64,
    gap: Duration,
    closing: Duration,
    alerts: Vec<MeterError>,
}

struct Track {
    source: usize,
    domain: Domain,
    curve: Curve,
}

#[derive(Clone, Copy, Debug)]
struct SourceState {
    last_try: Duration,
    last_reading: Duration,
    failing: bool,
    gone: bool,
}

impl EnergyMonitor {
    /// A monitor without meters yet, sampling every 100 ms.
    pub fn builder() -> EnergyMonitorBuilder {
        EnergyMonitorBuilder {
            meters: Vec::new(),
            interval: Duration::from_millis(100),
            clock: Clock::system(),
            with_sampler: true,
        }
    }

    /// A running monitor with the meters the configuration asks for.
    ///
    /// # Errors
    /// When a meter that was named is missing, or none can be read.
    pub fn from_config(config: &EnergyConfig) -> Result<Self> {
        let interval = Duration::from_millis(config.interval_ms);
        detect(config)?
            .into_iter()
            .fold(Self::builder().interval(interval), |b, meter| b.meter(meter))
            .start()
    }

    /// Ends the current window here, names what it was, and begins the next. Costs microseconds.
    pub fn close_window(&self, kind: WindowKind) -> WindowEnergy {
        let edge = self.shared.clock.now();
        self.shared.read_where(|source, _| source.period.is_zero());
        let mut book = self.shared.book();
        let window = book.close(kind, edge);
        book.closing += self.shared.clock.now().saturating_sub(edge);
        window
    }

    /// Samples every meter that is due, as the sampler thread does at its interval.
    pub fn sample(&self) {
        self.shared.read_where(|source, state| source.due(self.shared.clock.now(), state));
    }

    /// Everything counted so far.
    pub fn totals(&self) -> EnergyTotals {
        self.shared.totals()
    }

    /// Stops sampling, reads every meter once more and gives the totals. What no window had is the remainder.
    pub fn finish(mut self) -> EnergyTotals {
        self.stop_sampler();
        self.shared.read_where(|_, _| true);
        self.shared.totals()
    }

    /// Failures of meters since the last call, one for each stretch of failed readings: to be told to the user.
    pub fn take_alerts(&self) -> Vec<MeterError> {
        std::mem::take(&mut self.shared.book().alerts)
    }

    /// The meters in short, for a label: `nvml+rapl`, `model`, `none`.
    pub fn source_label(&self) -> &str {
        &self.source_label
    }

    fn stop_sampler(&mut self) {
        *lock(&self.shared.stop) = true;
        self.shared.stopped.notify_all();
        if let Some(sampler) = self.sampler.take() {
            // A sampler that panicked has already told so on stderr; the windows go on without it.
            let _ = sampler.join();
        }
    }
}

impl Drop for EnergyMonitor {
    fn drop(&mut self) {
        self.stop_sampler();
    }
}

impl EnergyMonitorBuilder {
    /// Adds a meter. Domains of different meters must not overlap.
    pub fn meter(mut self, meter: Box<dyn Meter>) -> Self {
        self.meters.push(meter);
        self
    }

    /// Time between two samples.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Uses another clock.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Starts no thread: the caller samples with [`EnergyMonitor::sample`].
    pub fn without_sampler(mut self) -> Self {
        self.with_sampler = false;
        self
    }

    /// Reads every meter for the first time and starts counting.
    ///
    /// # Errors
    /// When a meter cannot be read, or the thread cannot be started.
    pub fn start(self) -> Result<EnergyMonitor> {
        let started = self.clock.now();
        let (mut sources, mut tracks, mut states) = (Vec::new(), Vec::new(), Vec::new());
        let mut labels: Vec<&str> = Vec::new();
        for mut meter in self.meters {
            let (now, period) = (self.clock.now(), meter.update_period());
            let reading = meter.read(now)?;
            let source = sources.len();
            for (domain, cumulative) in meter.domains().iter().zip(reading.cumulative) {
                if !labels.contains(&domain.sensor) {
                    labels.push(domain.sensor);
                }
                // The sampler may come up to one interval after the counter's own update.
                let lag = if period.is_zero() { period } else { period + self.interval };
                let curve = Curve::new(lag, now, cumulative);
                tracks.push(Track { source, domain: domain.clone(), curve });
            }
            states.push(SourceState { last_try: now, last_reading: now, failing: false, gone: false });
            sources.push(Source { meter: Mutex::new(meter), period });
        }
        let source_label = if labels.is_empty() { "none".into() } else { labels.join("+") };
        let shared = Arc::new(Shared {
            clock: self.clock,
            sources,
            book: Mutex::new(Book {
                tracks,
                states,
                started,
                window_start: started,
                windows: 0,
                resets: 0,
                spikes: 0,
                gap: Duration::ZERO,
                closing: Duration::ZERO,
                alerts: Vec::new(),
            }),
            stop: Mutex::new(false),
            stopped: Condvar::new(),
            sampler_cpu_ns: AtomicU64::new(0),
        });
        let sampler = if self.with_sampler && !shared.sources.is_empty() {
            let (shared, interval) = (Arc::clone(&shared), self.interval);
            let thread = std::thread::Builder::new().name("energy-sampler".into());
            let started = thread.spawn(move || shared.run_sampler(interval));
            Some(
                started
                    .map_err(|error| Error::Thread { what: "energy sampler", reason: error.to_string() })?,
            )
        } else {
            None
        };
        Ok(EnergyMonitor { shared, sampler, source_label })
    }
}

impl Source {
    fn due(&self, now: Duration, state: &SourceState) -> bool {
        now.saturating_sub(state.last_try) >= self.period
    }
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        lock(&self.book)
    }

    /// Reads the chosen sources and enters what they say.
    fn read_where(&self, chosen: impl Fn(&Source, &SourceState) -> bool) {
        for (index, source) in self.sources.iter().enumerate() {
            let state = self.book().states[index];
            if !state.gone && chosen(source, &state) {
                let mut meter = lock(&source.meter);
                // Taken under the lock, so that times rise with readings.
                let now = self.clock.now();
                let outcome = meter.read(now);
                self.book().enter(index, now, outcome);
            }
        }
    }

    fn run_sampler(&self, interval: Duration) {
        let mut stop = lock(&self.stop);
        while !*stop {
            (stop, _) = self.stopped.wait_timeout(stop, interval).unwrap_or_else(PoisonError::into_inner);
            if *stop {
                return;
            }
            drop(stop);
            self.read_where(|source, state| source.due(self.clock.now(), state));
            self.sampler_cpu_ns.store(thread_cpu_ns(), Ordering::Relaxed);
            stop = lock(&self.stop);
        }
    }

    fn totals(&self) -> EnergyTotals {
        let now = self.clock.now();
        let book = self.book();
        let domains: Vec<DomainTotal> = book.tracks.iter().map(Track::total).collect();
        let (total, measured_share) =
            sum_and_measured_share(domains.iter().map(|domain| (domain.provenance, domain.total)));
        let sampler_cpu = Duration::from_nanos(self.sampler_cpu_ns.load(Ordering::Relaxed));
        EnergyTotals {
            duration: Seconds::from(now.saturating_sub(book.started)),
            windows: book.windows,
            joules: total.joules(),
            measured_share,
            domains,
            resets: book.resets,
            spikes: book.spikes,
            gap: Seconds::from(book.gap + book.gone_for(now)),
            tail: Seconds::from(now.saturating_sub(book.window_start)),
            overhead: Overhead { sampler_cpu, closing: book.closing },
        }
    }
}

impl Book {
    /// Enters a reading or its failure.
    fn enter(&mut self, source: usize, now: Duration, outcome: Outcome) {
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
                        CounterEvent::MissedWraps => {}
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

    fn close(&mut self, kind: WindowKind, edge: Duration) -> WindowEnergy {
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

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("clock", &self.clock).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every holder leaves the value whole between two statements, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn thread_cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for one timespec, and the call keeps no pointer to it.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::Plausible;
    use crate::meter::model::{Machine, ModelMeter};
    use crate::meter::replay::{ReplayMeter, Trace};
    use crate::units::Watts;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);
    const PLAUSIBLE: Plausible =
        Plausible { max_watts: Watts(500.0), update_slack: Duration::from_millis(100) };

    fn trace(range: Option<u64>, points: Vec<(Duration, Option<u64>)>) -> Trace {
        Trace { domain: "package-0".into(), range, plausible: PLAUSIBLE, points }
    }

    fn monitor(meter: ReplayMeter) -> (EnergyMonitor, crate::clock::ClockHand) {
        let (clock, hand) = Clock::manual();
        let monitor = EnergyMonitor::builder().meter(Box::new(meter)).clock(clock).without_sampler();
        (monitor.start().unwrap(), hand)
    }

    #[test]
    fn a_window_spans_from_the_close_before_it_to_its_own() {
        let points = vec![(MS * 0, Some(1000)), (MS * 100, Some(5_001_000)), (MS * 300, Some(25_001_000))];
        let (monitor, hand) = monitor(ReplayMeter::new(vec![trace(None, points)], Duration::ZERO));
        hand.advance(MS * 100);
        let setup = monitor.close_window(WindowKind::Setup);
        hand.advance(MS * 200);
        let step = monitor.close_window(WindowKind::Step);
        assert_eq!((setup.seq, setup.joules), (0, Some(Joules(5.0))));
        assert_eq!((step.seq, step.joules, step.watts), (1, Some(Joules(20.0)), Some(Watts(100.0))));
        assert_eq!(step.error_bound, None);
        assert!(step.complete);
    }

    #[test]
    fn an_unreadable_sensor_is_unknown_and_its_energy_joins_the_next_window() {
        let points = vec![(MS * 0, Some(0)), (MS * 100, None), (MS * 200, Some(8_000_000))];
        let (monitor, hand) = monitor(ReplayMeter::new(vec![trace(None, points)], Duration::ZERO));
        hand.advance(MS * 100);
        let blind = monitor.close_window(WindowKind::Step);
        assert_eq!((blind.joules, blind.complete), (None, false));
        assert_eq!(monitor.take_alerts().len(), 1);
        hand.advance(MS * 100);
        let next = monitor.close_window(WindowKind::Step);
        assert_eq!((next.joules, next.complete), (Some(Joules(8.0)), true));
        assert_eq!(monitor.take_alerts(), []);
    }

    #[test]
    fn a_slow_counter_gives_short_windows_an_interpolated_share() {
        let second = |s: u32| (MS * 1000 * s, Some(u64::from(s) * 100_000_000));
        let trace = trace(None, (0..=10).map(second).collect());
        let (clock, hand) = Clock::manual();
        let meter = Box::new(ReplayMeter::new(vec![trace], MS * 1000));
        let builder = EnergyMonitor::builder().meter(meter).clock(clock).interval(MS * 100);
        let monitor = builder.without_sampler().start().unwrap();
        let mut windows = Vec::new();
        for _ in 0..100 {
            hand.advance(MS * 50);
            monitor.sample();
            windows.push(monitor.close_window(WindowKind::Step));
        }
        // 100 W for 50 ms are 5 J, once the lag of one period and one interval has passed.
        for window in &windows[22..] {
            assert!((window.joules.unwrap().0 - 5.0).abs() < 0.1, "{window:?}");
            assert!(window.error_bound.is_some());
        }
        let given: u64 =
            windows.iter().flat_map(|window| &window.domains).map(|part| part.microjoules.0).sum();
        let totals = monitor.finish();
        assert_eq!(totals.domains[0].total, MicroJoules(500_000_000));
        assert_eq!(given + totals.domains[0].unattributed.0, 500_000_000);
        assert_eq!(totals.remainder().domains[0].microjoules, totals.domains[0].unattributed);
    }

    #[test]
    fn the_sampler_thread_reads_without_being_asked_and_stops_at_the_end() {
        let monitor = EnergyMonitor::builder()
            .meter(Box::new(ModelMeter::with_clock(
                Machine::detect(Some(50.0)),
                Box::new(|| Ok(Duration::from_millis(7))),
            )))
            .interval(MS)
            .start()
            .unwrap();
        while monitor.totals().joules.0 == 0.0 {
            std::thread::yield_now();
        }
        assert_eq!(monitor.source_label(), "model");
        let totals = monitor.finish();
        assert!(totals.joules.0 > 0.0 && totals.measured_share == 0.0);
    }

    #[test]
    fn a_monitor_without_meters_knows_nothing_rather_than_zero() {
        let monitor = EnergyMonitor::builder().start().unwrap();
        let window = monitor.close_window(WindowKind::Step);
        assert_eq!((window.joules, window.watts), (None, None));
        assert_eq!(monitor.source_label(), "none");
    }

    /// One reading of a random history.
    #[derive(Clone, Debug)]
    enum Tick {
        Rise(u64),
        Reset,
        Unreadable,
    }

    fn tick() -> impl Strategy<Value = Tick> {
        prop_oneof![
            8 => (0u64..5_000_000).prop_map(Tick::Rise),
            1 => Just(Tick::Reset),
            1 => Just(Tick::Unreadable),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn windows_and_remainder_equal_the_counter_through_wraps_resets_and_gaps(
            ticks in prop::collection::vec((tick(), 1u32..60), 1..200),
            slow in prop::bool::ANY,
        ) {
            // Small enough to wrap often, large enough that a reset is seldom taken for a wrap.
            const RANGE: u64 = 60_000_000;
            let (mut at, mut raw, mut spent, mut resets) = (MS * 0, RANGE / 2, 0u64, 0);
            let mut points = vec![(at, Some(raw))];
            for (tick, _) in &ticks {
                at += MS * 20;
                match tick {
                    Tick::Rise(rise) => {
                        spent += rise;
                        raw = (raw + rise) % (RANGE + 1);
                        points.push((at, Some(raw)));
                    }
                    Tick::Reset => {
                        resets += 1;
                        raw = 0;
                        points.push((at, Some(raw)));
                    }
                    Tick::Unreadable => points.push((at, None)),
                }
            }
            let period = if slow { MS * 60 } else { Duration::ZERO };
            let (monitor, hand) = monitor(ReplayMeter::new(vec![trace(Some(RANGE), points)], period));
            let mut given = 0;
            for (_, ms) in &ticks {
                hand.advance(MS * *ms);
                monitor.sample();
                let window = monitor.close_window(WindowKind::Step);
                given += window.domains.iter().map(|part| part.microjoules.0).sum::<u64>();
            }
            let totals = monitor.finish();
            let domain = &totals.domains[0];
            prop_assert_eq!(domain.attributed.0, given);
            prop_assert_eq!(domain.attributed + domain.unattributed, domain.total);
            // 500 W over the whole trace and its slack bound what may be counted at all.
            let possible_j = 500.0 * (totals.duration.0 + 0.1 * (ticks.len() + 1) as f64);
            prop_assert!(totals.joules.0 <= possible_j, "{} of {}", totals.joules, possible_j);
            if resets == 0 && totals.spikes == 0 && totals.gap.0 == 0.0 {
                prop_assert!(domain.total.0 <= spent);
            }
        }
    }
}
