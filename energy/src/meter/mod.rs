//! Meters: where joules come from.
//!
//! A meter turns whatever its sensor gives (a counter that wraps, a power curve) into energy that only grows.
//! Wraps and resets are settled here, so that everything above works with plain differences.

pub mod apportion;
pub mod bmc;
mod cgroup;
pub mod counter;
pub mod detect;
pub mod host;
pub mod hwmon;
pub mod integrate;
pub mod machine;
pub mod memory;
pub mod model;
pub mod nvml;
pub mod perf;
pub mod rapl;
pub mod register;
pub mod replay;
pub mod tdp;
pub mod trace;
pub mod trial;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::{MicroJoules, Watts};

/// A source of energy readings for one or more domains.
pub trait Meter: Send {
    /// What is measured; the same list, in the same order, for the life of the meter.
    fn domains(&self) -> &[Domain];

    /// How often the sensor has news. Zero: every reading is fresh, so the meter may be read at the edge of a
    /// window. Otherwise it is read once per period and windows are interpolated between readings.
    fn update_period(&self) -> Duration;

    /// Energy of each domain since the first reading. `now` is the caller's monotonic time, never going back.
    fn read(&mut self, now: Duration) -> Result<Reading, MeterError>;
}

/// One thing whose energy is counted, disjoint from all other domains.
#[derive(Clone, Debug, PartialEq)]
pub struct Domain {
    /// What draws the energy: `package-0`, `dram-0`, `gpu-0`, `cpu`, `ram`.
    pub name: Arc<str>,
    /// What reads it: `perf`, `rapl`, `hwmon`, `bmc`, `nvml`, `model`.
    pub sensor: &'static str,
    /// How its joules come about.
    pub provenance: Provenance,
}

/// How a number of joules came about. It stays with the number in every file, table and label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Provenance {
    /// The difference of a hardware energy counter.
    MeasuredCounter,
    /// Measured power, integrated over time.
    IntegratedPower,
    /// A hardware counter, interpolated because it updates slower than the window is long.
    Interpolated,
    /// A share of a measured total.
    Apportioned,
    /// The measured total of a device that others may have used too: the most that the share can be.
    Undivided,
    /// Computed from utilisation and a power curve; nothing was measured.
    Modelled,
    /// Played back from a recording.
    Replayed,
    /// Given by the user.
    UserDeclared,
}

impl Provenance {
    /// All values, in order of trust.
    pub const ALL: [Provenance; 8] = [
        Provenance::MeasuredCounter,
        Provenance::IntegratedPower,
        Provenance::Interpolated,
        Provenance::Apportioned,
        Provenance::Undivided,
        Provenance::Modelled,
        Provenance::Replayed,
        Provenance::UserDeclared,
    ];

    /// The name in files and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Provenance::MeasuredCounter => "measured_counter",
            Provenance::IntegratedPower => "integrated_power",
            Provenance::Interpolated => "interpolated",
            Provenance::Apportioned => "apportioned",
            Provenance::Undivided => "undivided",
            Provenance::Modelled => "modelled",
            Provenance::Replayed => "replayed",
            Provenance::UserDeclared => "user_declared",
        }
    }

    /// The provenance of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|provenance| provenance.as_str() == name)
    }

    /// True when the joules were read from hardware, at the window or around it.
    pub fn is_measured(self) -> bool {
        matches!(
            self,
            Provenance::MeasuredCounter
                | Provenance::IntegratedPower
                | Provenance::Interpolated
                | Provenance::Apportioned
                | Provenance::Undivided
        )
    }
}

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One reading of a meter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// Energy since the first reading, one entry for each domain. Never smaller than in the last reading.
    pub cumulative: Vec<MicroJoules>,
    /// Irregularities since the last reading.
    pub notes: Vec<Note>,
}

/// An irregularity of one domain's counter.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    /// Index into the meter's domains.
    pub domain: usize,
    /// What happened.
    pub event: CounterEvent,
    /// Time since the reading before, the span whose energy is in doubt.
    pub span: Duration,
}

/// What happened to a counter between two readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CounterEvent {
    /// The counter passed its range and went on; no energy is lost.
    Wrap,
    /// The counter started anew (driver reload, sleep). The energy of the span is unknown and not counted.
    Reset,
    /// The counter jumped further than the hardware can draw. The jump is not counted.
    Spike,
    /// The readings lie so far apart that wraps may have been missed: the energy of the span is a lower bound.
    MissedWraps,
    /// The reading shows an older time or an older value than the one before. It is left out; nothing is lost.
    OutOfOrder,
    /// The sensor of this domain could not be read, others of its meter could. What its counter rises by joins the
    /// next reading; the span is zero.
    Unreadable,
    /// Power samples lie too far apart to integrate between them. The energy of the span is unknown and not counted.
    Gap,
    /// Others used the device too: what the domain rose by is this process's share. The span is zero.
    Apportioned,
    /// Others may have used the device too, and how much cannot be told: the domain rose by all that the device drew.
    /// The span is zero.
    Undivided,
}

/// A meter that could not be opened or read.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{sensor}: {message}; {remedy}")]
pub struct MeterError {
    /// Which meter.
    pub sensor: &'static str,
    /// Whether to try again.
    pub kind: MeterErrorKind,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// What a caller may expect after a [`MeterError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MeterErrorKind {
    /// It will not work until a person changes something.
    Fatal,
    /// The next reading may work; until then there is a gap.
    Retry,
    /// The device has left.
    Gone,
}

/// Largest plausible draw of a sensor, and how coarse its counter is in time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plausible {
    /// More than this is an artefact.
    pub max_watts: Watts,
    /// Longest time between two updates of the counter: that much energy may arrive at once.
    pub update_slack: Duration,
}
