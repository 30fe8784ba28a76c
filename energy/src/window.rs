//! What the monitor gives out: the energy of one window, and the totals of a whole measurement.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::meter::Provenance;
use crate::units::{Joules, MicroJoules, Seconds, Watts};

/// What a window was spent on. Power differs widely between them, and averages hide it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WindowKind {
    /// Before the first step: loading, building, compiling.
    Setup,
    /// One training step.
    Step,
    /// Held-out evaluation.
    Evaluation,
    /// Writing a checkpoint.
    Checkpoint,
    /// Waiting for data.
    Data,
    /// Nothing useful.
    Idle,
    /// Begun and never closed: the process was killed in it.
    Open,
    /// Energy the counters showed that fell into no window: the tail behind a slow counter.
    Unattributed,
}

impl WindowKind {
    /// The name in files and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            WindowKind::Setup => "setup",
            WindowKind::Step => "step",
            WindowKind::Evaluation => "evaluation",
            WindowKind::Checkpoint => "checkpoint",
            WindowKind::Data => "data",
            WindowKind::Idle => "idle",
            WindowKind::Open => "open",
            WindowKind::Unattributed => "unattributed",
        }
    }
}

impl fmt::Display for WindowKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The energy of one window: from the close of the window before to its own.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowEnergy {
    /// Number of the window within its monitor, from 0: with it the ledger counts a window once.
    pub seq: u64,
    /// What it was spent on.
    pub kind: WindowKind,
    /// How long it was.
    pub duration: Seconds,
    /// Energy of all domains; `None` when nothing was read, which is not the same as none used.
    pub joules: Option<Joules>,
    /// Mean power.
    pub watts: Option<Watts>,
    /// Share of the joules that was measured, 0 to 1; the rest was modelled.
    pub measured_share: f64,
    /// How far off the joules may be by interpolation between slow counter updates; `None` when every counter was
    /// read at the edges.
    pub error_bound: Option<Joules>,
    /// False when a sensor could not be read at the end, so that its energy joins the next window that reads it, or
    /// when a part of the energy is unknown: a counter was reset, jumped or stood still, or the machine slept.
    pub complete: bool,
    /// The energy of each domain that was read.
    pub domains: Vec<DomainEnergy>,
}

/// The energy of a named span, measured beside the windows.
#[derive(Clone, Debug, PartialEq)]
pub struct SpanEnergy {
    /// Its name; a span inside another has the outer name before its own: `outer/inner`.
    pub name: String,
    /// How long it was, without the time the machine slept.
    pub duration: Seconds,
    /// Energy of all domains; `None` when nothing was read, which is not the same as none used.
    pub joules: Option<Joules>,
    /// Mean power.
    pub watts: Option<Watts>,
    /// Share of the joules that was measured, 0 to 1; the rest was modelled.
    pub measured_share: f64,
    /// How far off the joules may be by interpolation between slow counter updates.
    pub error_bound: Option<Joules>,
    /// False when a part of the energy is unknown, as in [`WindowEnergy::complete`].
    pub complete: bool,
    /// The energy of each domain that was read.
    pub domains: Vec<DomainEnergy>,
}

/// Energy of one domain.
#[derive(Clone, Debug, PartialEq)]
pub struct DomainEnergy {
    /// What drew it: `package-0`, `gpu-1`, `cpu`.
    pub domain: Arc<str>,
    /// What read it: `rapl`, `nvml`, `model`.
    pub sensor: &'static str,
    /// How the number came about.
    pub provenance: Provenance,
    /// The energy.
    pub microjoules: MicroJoules,
}

/// Everything a monitor has counted. For each domain, attributed + unattributed == total, exactly.
#[derive(Clone, Debug, PartialEq)]
pub struct EnergyTotals {
    /// From the start to now.
    pub duration: Seconds,
    /// Windows closed.
    pub windows: u64,
    /// Energy of all domains; without domains nothing is known of it, and this is 0.
    pub joules: Joules,
    /// Share of the joules that was measured, 0 to 1.
    pub measured_share: f64,
    /// Each domain's balance.
    pub domains: Vec<DomainTotal>,
    /// Counters that passed their range and went on; nothing is lost.
    pub wraps: u64,
    /// Counters that started anew.
    pub resets: u64,
    /// Implausible jumps that were left out.
    pub spikes: u64,
    /// Readings that repeated the one before though the sensor should have had news.
    pub stuck_readings: u64,
    /// Readings that showed an older time or value than the one before and were left out.
    pub out_of_order: u64,
    /// Times the machine slept.
    pub sleeps: u64,
    /// Time for which the energy of a domain is unknown or only bounded from below, summed over domains.
    pub gap: Seconds,
    /// Time since the last window was closed.
    pub tail: Seconds,
    /// What measuring itself has cost.
    pub overhead: Overhead,
}

/// The balance of one domain.
#[derive(Clone, Debug, PartialEq)]
pub struct DomainTotal {
    /// What drew it.
    pub domain: Arc<str>,
    /// What read it.
    pub sensor: &'static str,
    /// How the numbers came about.
    pub provenance: Provenance,
    /// Counter at the end less counter at the start.
    pub total: MicroJoules,
    /// The sum of all windows.
    pub attributed: MicroJoules,
    /// What fell into no window.
    pub unattributed: MicroJoules,
}

/// What measuring has cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overhead {
    /// CPU time of the sampler thread.
    pub sampler_cpu: Duration,
    /// CPU time spent closing windows, on the caller's thread.
    pub closing_cpu: Duration,
    /// CPU time of keeping the ledger; none until its owner enters what [`Ledger::finish`](crate::Ledger::finish) gives.
    pub ledger_cpu: Duration,
}

impl WindowEnergy {
    /// Energy of all domains that were read.
    pub fn microjoules(&self) -> MicroJoules {
        MicroJoules(self.domains.iter().map(|part| part.microjoules.0).sum())
    }

    pub(crate) fn new(
        seq: u64,
        kind: WindowKind,
        duration: Seconds,
        error_bound: Option<Joules>,
        complete: bool,
        domains: Vec<DomainEnergy>,
    ) -> Self {
        let (joules, measured_share) = known_joules(&domains);
        let watts = joules.and_then(|joules| joules.over(duration));
        WindowEnergy { seq, kind, duration, joules, watts, measured_share, error_bound, complete, domains }
    }
}

impl SpanEnergy {
    /// Energy of all domains that were read.
    pub fn microjoules(&self) -> MicroJoules {
        self.domains.iter().map(|part| part.microjoules).sum()
    }

    pub(crate) fn new(
        name: String,
        duration: Seconds,
        error_bound: Option<Joules>,
        complete: bool,
        domains: Vec<DomainEnergy>,
    ) -> Self {
        let (joules, measured_share) = known_joules(&domains);
        let watts = joules.and_then(|joules| joules.over(duration));
        SpanEnergy { name, duration, joules, watts, measured_share, error_bound, complete, domains }
    }
}

impl fmt::Display for SpanEnergy {
    /// `fit: 12.3 J in 1.20 s (measured_counter)`, each provenance once.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut provenances: Vec<Provenance> = self.domains.iter().map(|part| part.provenance).collect();
        provenances.sort();
        provenances.dedup();
        let names: Vec<&str> = provenances.iter().map(|provenance| provenance.as_str()).collect();
        match self.joules {
            Some(joules) => {
                write!(f, "{}: {joules} in {:.2} s ({})", self.name, self.duration.0, names.join(", "))
            }
            None => write!(f, "{}: energy unknown in {:.2} s", self.name, self.duration.0),
        }
    }
}

impl EnergyTotals {
    /// The remainder as a last window, so that a ledger that has all windows has the whole counter.
    pub fn remainder(&self) -> WindowEnergy {
        let parts = self.domains.iter().map(|domain| DomainEnergy {
            domain: Arc::clone(&domain.domain),
            sensor: domain.sensor,
            provenance: domain.provenance,
            microjoules: domain.unattributed,
        });
        WindowEnergy::new(self.windows, WindowKind::Unattributed, self.tail, None, true, parts.collect())
    }

    /// CPU time spent measuring over time measured, 0 to 1.
    pub fn overhead_share(&self) -> f64 {
        let Overhead { sampler_cpu, closing_cpu, ledger_cpu } = self.overhead;
        let spent = (sampler_cpu + closing_cpu + ledger_cpu).as_secs_f64();
        if self.duration.0 > 0.0 { spent / self.duration.0 } else { 0.0 }
    }
}

/// Joules of all domains, none where none was read, and the share of them that was measured.
fn known_joules(domains: &[DomainEnergy]) -> (Option<Joules>, f64) {
    let parts = domains.iter().map(|part| (part.provenance, part.microjoules));
    let (total, measured_share) = sum_and_measured_share(parts);
    ((!domains.is_empty()).then(|| total.joules()), measured_share)
}

/// Joules of all parts and the share of them that was measured.
pub(crate) fn sum_and_measured_share(
    parts: impl Iterator<Item = (Provenance, MicroJoules)>,
) -> (MicroJoules, f64) {
    let (mut all, mut measured) = (0u64, 0u64);
    for (provenance, MicroJoules(part)) in parts {
        all += part;
        measured += if provenance.is_measured() { part } else { 0 };
    }
    (MicroJoules(all), if all > 0 { measured as f64 / all as f64 } else { 0.0 })
}
