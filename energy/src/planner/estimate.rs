//! Time, energy and carbon from work, power and place.
//!
//! hours = FLOPs / (chips * peak * efficiency), energy = chip-hours * watts per chip * PUE,
//! carbon = energy * intensity.

use std::borrow::Cow;

use super::range::{Factor, Range};
use crate::carbon::GridIntensity;
use crate::units::JOULES_PER_KILOWATT_HOUR;

const SECONDS_PER_HOUR: f64 = 3600.0;
/// A year of 365.25 days.
const HOURS_PER_YEAR: f64 = 8766.0;

/// What decides the cost of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Inputs {
    /// How long it takes.
    pub work: Work,
    /// Mean power of one chip, its share of the computer around it included, in watts; `None` when nobody has
    /// published it, and then nothing can be said about energy.
    pub watts_per_chip: Option<Factor>,
    /// What the building draws over what its computers draw.
    pub pue: Factor,
    /// Carbon intensity of the electricity.
    pub grams_per_kwh: Factor,
    /// Emissions of making the chips; `None`: not known.
    pub embodied: Option<Embodied>,
}

/// How long a run takes, or how much there is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// The time is known.
    Time {
        /// Hours times chips.
        chip_hours: f64,
        /// Chips, when known.
        chips: Option<f64>,
        /// Floating-point operations, when known.
        flops: Option<f64>,
    },
    /// The time follows from the operations.
    Compute {
        /// Floating-point operations of the whole run.
        flops: f64,
        /// Operations per second of one chip at most.
        peak_flops: Factor,
        /// The share of the peak that the run reaches.
        efficiency: Factor,
        /// Chips.
        chips: f64,
    },
}

/// Emissions of making one chip.
#[derive(Clone, Debug, PartialEq)]
pub struct Embodied {
    /// Kilograms of CO2-equivalent.
    pub kg_per_chip: f64,
    /// Its expected life, over which they are spread.
    pub lifetime_years: f64,
    /// What the figure includes: die, board, server.
    pub boundary: Cow<'static, str>,
    /// Who says so.
    pub source: Cow<'static, str>,
}

/// What a run will cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// What it was computed from.
    pub inputs: Inputs,
    /// Hours from start to end; `None` when the number of chips is not known.
    pub hours: Option<Range>,
    /// Hours times chips.
    pub chip_hours: Range,
    /// Energy of the building; `None` when the power is not known.
    pub joules: Option<Range>,
    /// Emissions of that energy.
    pub grams: Option<Range>,
    /// The run's share of making the chips, in grams; no part of `grams`.
    pub embodied_grams: Option<Range>,
}

impl From<GridIntensity> for Factor {
    fn from(intensity: GridIntensity) -> Self {
        let grams = intensity.grams_per_kwh.0;
        let GridIntensity { zone, source, .. } = intensity;
        match intensity.year {
            // A third of all places moved by more than this within two years (`carbon::grid`).
            Some(year) => Factor::new(
                Range::around(grams, 0.10),
                format!("{zone} {year}, {source}; two thirds of all places stay within 10 % for two years"),
            ),
            None => Factor::new(Range::exact(grams), source),
        }
    }
}

impl Inputs {
    /// The cost.
    pub fn estimate(self) -> Estimate {
        let chip_hours = match &self.work {
            Work::Time { chip_hours, .. } => Range::exact(*chip_hours),
            Work::Compute { flops, peak_flops, efficiency, .. } => {
                Range::exact(flops / SECONDS_PER_HOUR) / (peak_flops.range * efficiency.range)
            }
        };
        let chip_seconds = chip_hours * Range::exact(SECONDS_PER_HOUR);
        let joules = self.watts_per_chip.as_ref().map(|watts| chip_seconds * watts.range * self.pue.range);
        let grams_per_joule = self.grams_per_kwh.range / Range::exact(JOULES_PER_KILOWATT_HOUR);
        let making = |embodied: &Embodied| {
            let grams_per_hour = embodied.kg_per_chip * 1e3 / (embodied.lifetime_years * HOURS_PER_YEAR);
            chip_hours * Range::exact(grams_per_hour)
        };
        Estimate {
            hours: self.work.chips().map(|chips| chip_hours / Range::exact(chips)),
            chip_hours,
            joules,
            grams: joules.map(|joules| joules * grams_per_joule),
            embodied_grams: self.embodied.as_ref().map(making),
            inputs: self,
        }
    }
}

impl Work {
    /// Floating-point operations, when known.
    pub fn flops(&self) -> Option<f64> {
        match self {
            Work::Time { flops, .. } => *flops,
            Work::Compute { flops, .. } => Some(*flops),
        }
    }

    /// Chips, when known.
    pub fn chips(&self) -> Option<f64> {
        match self {
            Work::Time { chips, .. } => *chips,
            Work::Compute { chips, .. } => Some(*chips),
        }
    }
}

impl Estimate {
    /// Every factor with its name; the unit stands in the name.
    pub fn factors(&self) -> Vec<(&'static str, &Factor)> {
        let mut factors = Vec::new();
        if let Work::Compute { peak_flops, efficiency, .. } = &self.inputs.work {
            factors.push(("peak_flops", peak_flops));
            factors.push(("efficiency", efficiency));
        }
        factors.extend(self.inputs.watts_per_chip.as_ref().map(|watts| ("watts_per_chip", watts)));
        factors.push(("pue", &self.inputs.pue));
        factors.push(("grams_per_kwh", &self.inputs.grams_per_kwh));
        factors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs() -> Inputs {
        let exact = |value| Factor::new(Range::exact(value), "given");
        Inputs {
            // 3.6e18 operations at 0.5 of 1e15 a second are 7200 s of one chip.
            work: Work::Compute {
                flops: 3.6e18,
                peak_flops: exact(1e15),
                efficiency: Factor::new(Range { low: 0.25, mid: 0.5, high: 0.5 }, "given"),
                chips: 4.0,
            },
            watts_per_chip: Some(Factor::new(Range::around(500.0, 0.2), "given")),
            pue: exact(1.2),
            grams_per_kwh: exact(100.0),
            embodied: Some(Embodied {
                kg_per_chip: 8.766,
                lifetime_years: 1.0,
                boundary: "die".into(),
                source: "given".into(),
            }),
        }
    }

    fn assert_near(found: Option<Range>, low: f64, mid: f64, high: f64) {
        let Range { low: l, mid: m, high: h } = found.unwrap();
        for (found, expected) in [(l, low), (m, mid), (h, high)] {
            assert!((found / expected - 1.0).abs() < 1e-12, "{found}, expected {expected}");
        }
    }

    #[test]
    fn time_energy_and_carbon_follow_from_the_work() {
        let estimate = inputs().estimate();
        assert_eq!(estimate.chip_hours, Range { low: 2.0, mid: 2.0, high: 4.0 });
        assert_eq!(estimate.hours, Some(Range { low: 0.5, mid: 0.5, high: 1.0 }));
        // 2 h * 500 W * 1.2 = 1.2 kWh; the power is off by a fifth, the time at most doubles.
        assert_near(estimate.joules, 0.96 * 3.6e6, 1.2 * 3.6e6, 2.88 * 3.6e6);
        assert_near(estimate.grams, 96.0, 120.0, 288.0);
        // 8766 g over 8766 h: a gram each hour.
        assert_near(estimate.embodied_grams, 2.0, 2.0, 4.0);
    }

    #[test]
    fn without_a_published_power_nothing_is_said_about_energy() {
        let estimate = Inputs { watts_per_chip: None, ..inputs() }.estimate();
        assert_eq!((estimate.joules, estimate.grams), (None, None));
        assert!(estimate.hours.is_some());
    }
}
