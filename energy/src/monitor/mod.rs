//! The monitor: a thread that samples the meters, and windows that follow each other without gap or overlap.
//!
//! A window ends where the next begins, so every joule falls into exactly one, and windows plus remainder equal
//! the counters to the last microjoule. Meters whose readings are always fresh are read at the edge itself; slow
//! ones only by the sampler, and their windows are interpolated (see `curve`).

mod book;
mod curve;
mod span;
mod track;

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::{Clock, thread_cpu_time};
use crate::config::EnergyConfig;
use crate::error::{Error, Result};
use crate::meter::detect::detect;
use crate::meter::trace::TraceWriter;
use crate::meter::{Meter, MeterError, Reading};
use crate::window::{EnergyTotals, SpanEnergy, WindowEnergy, WindowKind};
use book::{Book, SourceState, SpanStart, Taken};
pub use span::Span;

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
    recording: Option<PathBuf>,
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
    /// Always fresh: read at every edge. Others are read by the sampler only.
    fresh: bool,
    /// Time between two readings by the sampler: the update period, for a fresh one the interval.
    every: Duration,
}

impl EnergyMonitor {
    /// A monitor without meters yet, sampling every 100 ms.
    pub fn builder() -> EnergyMonitorBuilder {
        EnergyMonitorBuilder {
            meters: Vec::new(),
            interval: Duration::from_millis(100),
            clock: Clock::system(),
            with_sampler: true,
            recording: None,
        }
    }

    /// A running monitor with the meters the configuration asks for.
    ///
    /// # Errors
    /// When a meter that was named is missing, or none can be read.
    pub fn from_config(config: &EnergyConfig) -> Result<Self> {
        let found = detect(config)?;
        let interval = Duration::from_millis(config.interval_ms).min(found.longest_pause);
        let builder = Self::builder().interval(interval);
        let monitor =
            found.meters.into_iter().fold(builder, |builder, meter| builder.meter(meter)).start()?;
        monitor.shared.book().alerts.extend(found.passed_over);
        Ok(monitor)
    }

    /// Ends the current window here, names what it was, and begins the next. Costs tens of microseconds.
    pub fn close_window(&self, kind: WindowKind) -> WindowEnergy {
        self.shared.at_edge(|book, edge| book.close(kind, edge))
    }

    /// Begins a named span here, beside the windows and beside other spans: `monitor.begin("fit")`, then
    /// [`end`](Span::end). Spans may nest, overlap and cross threads. Where a counter is slow the span is
    /// interpolated like a window, and as late: one much longer than the counter's period is little affected, and
    /// its error bound says how much.
    pub fn begin(&self, name: impl Into<String>) -> Span<'_> {
        let start = self.shared.at_edge(|book, edge| book.open_span(edge));
        Span::new(self, name.into(), start)
    }

    /// Runs `work` and gives what it returned with the energy of the meantime.
    pub fn measure<T>(&self, name: &str, work: impl FnOnce() -> T) -> (T, SpanEnergy) {
        let span = self.begin(name);
        let result = work();
        (result, span.end())
    }

    fn close_span(&self, name: String, start: &SpanStart) -> SpanEnergy {
        self.shared.at_edge(|book, edge| book.close_span(name, start, edge))
    }

    /// A question that can be asked from any thread: the energy of the open window so far, for
    /// [`Ledger::watch`](crate::Ledger::watch). Meters whose readings are always fresh are read for it.
    pub fn in_progress(&self) -> impl Fn() -> WindowEnergy + Send + use<> {
        let shared = Arc::clone(&self.shared);
        move || {
            shared.read_where(|source, _| source.fresh);
            shared.book().in_progress(WindowKind::Open, shared.clock.now())
        }
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

    /// What the user should hear, since the last call: counters that `auto` found but could not use, and failures to
    /// read, one for each stretch of them.
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

    /// Time between two samples; sensors whose power is integrated are read more often where it is long.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Uses another clock.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Records every reading into a file that [`trace::read`](crate::meter::trace::read) plays back. A recording that
    /// cannot be written to the end is told by [`EnergyMonitor::take_alerts`]; the measurement goes on.
    pub fn record_to(mut self, path: impl Into<PathBuf>) -> Self {
        self.recording = Some(path.into());
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
    /// When a meter cannot be read, the recording cannot be created, or the thread cannot be started.
    pub fn start(self) -> Result<EnergyMonitor> {
        let mut book = Book::new(self.clock.now(), self.clock.asleep());
        let mut sources = Vec::new();
        for mut meter in self.meters {
            let period = meter.update_period();
            let (taken, first) = read_at(&self.clock, meter.as_mut());
            // The sampler may come up to one interval after the counter's own update.
            let lag = if period.is_zero() { period } else { period + self.interval };
            book.add_source(meter.domains(), (period, lag), taken, &first?);
            let every = if period.is_zero() { self.interval } else { period };
            sources.push(Source { meter: Mutex::new(meter), fresh: period.is_zero(), every });
        }
        if let Some(path) = self.recording {
            let recorder = TraceWriter::create(path, book.domains())?;
            book.record_to(recorder);
        }
        let source_label = book.source_label();
        let shared = Arc::new(Shared {
            clock: self.clock,
            sources,
            book: Mutex::new(book),
            stop: Mutex::new(false),
            stopped: Condvar::new(),
            sampler_cpu_ns: AtomicU64::new(0),
        });
        let mut monitor = EnergyMonitor { shared, sampler: None, source_label };
        if self.with_sampler && !monitor.shared.sources.is_empty() {
            let shared = Arc::clone(&monitor.shared);
            // Power has to be read more often than a long interval says.
            let tick = shared.sources.iter().map(|source| source.every).fold(self.interval, Duration::min);
            let thread = std::thread::Builder::new().name("energy-sampler".into());
            let started = thread.spawn(move || shared.run_sampler(tick));
            let refused =
                |error: std::io::Error| Error::Thread { what: "energy sampler", reason: error.to_string() };
            monitor.sampler = Some(started.map_err(refused)?);
        }
        Ok(monitor)
    }
}

impl Source {
    fn due(&self, now: Duration, state: &SourceState) -> bool {
        now.saturating_sub(state.last_try) >= self.every
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
                let (taken, outcome) = read_at(&self.clock, meter.as_mut());
                self.book().enter(index, taken, outcome);
            }
        }
    }

    /// Reads the fresh sensors here and looks into the books as they then stand.
    fn at_edge<T>(&self, look: impl FnOnce(&mut Book, Duration) -> T) -> T {
        let edge = self.clock.now();
        let cpu_before = thread_cpu_time();
        self.read_where(|source, _| source.fresh);
        let mut book = self.book();
        let seen = look(&mut book, edge);
        book.closing_cpu += thread_cpu_time().saturating_sub(cpu_before);
        seen
    }

    fn run_sampler(&self, tick: Duration) {
        let mut stop = lock(&self.stop);
        while !*stop {
            (stop, _) = self.stopped.wait_timeout(stop, tick).unwrap_or_else(PoisonError::into_inner);
            if *stop {
                return;
            }
            drop(stop);
            self.read_where(|source, state| source.due(self.clock.now(), state));
            let spent_ns = u64::try_from(thread_cpu_time().as_nanos()).unwrap_or(u64::MAX);
            self.sampler_cpu_ns.store(spent_ns, Ordering::Relaxed);
            stop = lock(&self.stop);
        }
    }

    fn totals(&self) -> EnergyTotals {
        let sampler_cpu = Duration::from_nanos(self.sampler_cpu_ns.load(Ordering::Relaxed));
        self.book().totals(self.clock.now(), sampler_cpu)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("clock", &self.clock).finish_non_exhaustive()
    }
}

fn read_at(clock: &Clock, meter: &mut dyn Meter) -> (Taken, std::result::Result<Reading, MeterError>) {
    let asleep_before = clock.asleep();
    let at = clock.now();
    let outcome = meter.read(at);
    (Taken { at, asleep_before, asleep_after: clock.asleep() }, outcome)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every holder leaves the value whole between two statements, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
