//! How far joules and grams may be off: the known gain errors of the sensors, carried to the sums.
//!
//! Errors of gain do not average out over a run, so the parts of a sum are taken to be off the same way at once.

use super::account::{Account, DomainAccount};
use crate::meter::Provenance;
use crate::units::{Grams, Joules};

/// How far a sensor's joules may be off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GainError {
    /// In percent of the reading, either way.
    pub percent: f64,
    /// Who found it.
    pub origin: &'static str,
}

/// The least and the most that a sum may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The least, as a factor of the sum.
    pub low: f64,
    /// The most, as a factor of the sum.
    pub high: f64,
}

impl DomainAccount {
    /// How far its joules may be off; `None` when nobody has told.
    pub fn gain_error(&self) -> Option<GainError> {
        let (percent, origin) = match (self.source, self.sensor.as_str()) {
            // The whole may be known; how right the share is, is not.
            (Provenance::Apportioned | Provenance::Undivided, _) => return None,
            (Provenance::Modelled, _) => {
                (40.0, "a model: estimates err by up to 40 % against meters (Fischer, arXiv 2509.22092)")
            }
            (source, "nvml") if source.is_measured() => {
                (5.0, "NVML: gain error of a board (Yang, Adamek, Armour, SC'24, arXiv 2312.02741)")
            }
            (source, "rapl") if source.is_measured() && self.domain.starts_with("dram") => (
                20.0,
                "RAPL of memory: estimated on many processors (Desrochers, Paradis, Weaver, MEMSYS'16)",
            ),
            (source, "rapl") if source.is_measured() => {
                (5.0, "RAPL of a processor: 171 W told of 180 W at the wall (Threadripper under full load)")
            }
            _ => return None,
        };
        Some(GainError { percent, origin })
    }
}

impl Account {
    /// The range of its energy, and of its grams apart from the error of the grid's figure; `None` when the energy is
    /// unknown or the error of a sensor is.
    pub fn range(&self) -> Option<Range> {
        let all = self.joules().filter(|joules| joules.0 > 0.0)?;
        let mut off = 0.0;
        for domain in &self.domains {
            off += domain.energy.joules().0 * domain.gain_error()?.percent / 100.0;
        }
        let share = off / all.0;
        Some(Range { low: 1.0 - share, high: 1.0 + share })
    }
}

impl Range {
    /// The least and the most of an energy.
    pub fn joules(self, sum: Joules) -> (Joules, Joules) {
        (Joules(sum.0 * self.low), Joules(sum.0 * self.high))
    }

    /// The least and the most of emissions.
    pub fn grams(self, sum: Grams) -> (Grams, Grams) {
        (Grams(sum.0 * self.low), Grams(sum.0 * self.high))
    }
}
