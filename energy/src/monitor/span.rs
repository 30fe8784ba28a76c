//! Named spans: the energy between any two moments, nested in each other as the program nests, beside the chain of
//! windows and without touching it.

use super::EnergyMonitor;
use super::book::SpanStart;
use crate::window::SpanEnergy;

/// A stretch of time that is being measured; [`end`](Span::end) gives its energy. Dropped, it leaves no trace.
#[derive(Debug)]
#[must_use = "a span is measured when it ends"]
pub struct Span<'a> {
    monitor: &'a EnergyMonitor,
    name: String,
    start: SpanStart,
}

impl<'a> Span<'a> {
    pub(super) fn new(monitor: &'a EnergyMonitor, name: String, start: SpanStart) -> Self {
        Span { monitor, name, start }
    }

    /// Begins a span inside this one; its name is `outer/inner`.
    pub fn begin(&self, name: &str) -> Span<'a> {
        self.monitor.begin(format!("{}/{name}", self.name))
    }

    /// The energy since the span began.
    pub fn end(self) -> SpanEnergy {
        self.monitor.close_span(self.name, &self.start)
    }
}
