//! Energy, power, time and carbon as types, so that a unit is never left to a comment.
//!
//! Counters are kept in whole microjoules: sums of windows must equal a counter to the last unit, which floating
//! point cannot promise. Everything shown to people is derived from them.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul};

use serde::{Deserialize, Serialize};

/// Joules in one kilowatt-hour.
pub const JOULES_PER_KILOWATT_HOUR: f64 = 3.6e6;

/// Energy, exact: the unit of all bookkeeping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MicroJoules(pub u64);

/// Energy, for showing and computing.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Joules(pub f64);

/// Power.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Watts(pub f64);

/// Time.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seconds(pub f64);

/// Mass of CO2-equivalent.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Grams(pub f64);

/// Carbon intensity of electricity: grams of CO2-equivalent for each kilowatt-hour.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GramsPerKilowattHour(pub f64);

impl MicroJoules {
    /// The same energy in joules.
    pub fn joules(self) -> Joules {
        Joules(self.0 as f64 / 1e6)
    }
}

impl Joules {
    /// The same energy in kilowatt-hours.
    pub fn kilowatt_hours(self) -> f64 {
        self.0 / JOULES_PER_KILOWATT_HOUR
    }

    /// Mean power over `time`; `None` when no time has passed.
    pub fn over(self, time: Seconds) -> Option<Watts> {
        (time.0 > 0.0).then(|| Watts(self.0 / time.0))
    }
}

impl GramsPerKilowattHour {
    /// What `energy`, measured at the computer, emits in a building with the given power usage effectiveness.
    pub fn grams(self, energy: Joules, pue: f64) -> Grams {
        Grams(energy.kilowatt_hours() * pue * self.0)
    }
}

impl From<std::time::Duration> for Seconds {
    fn from(duration: std::time::Duration) -> Self {
        Seconds(duration.as_secs_f64())
    }
}

impl Mul<Seconds> for Watts {
    type Output = Joules;
    fn mul(self, time: Seconds) -> Joules {
        Joules(self.0 * time.0)
    }
}

impl Add for MicroJoules {
    type Output = MicroJoules;
    fn add(self, other: MicroJoules) -> MicroJoules {
        MicroJoules(self.0 + other.0)
    }
}

impl AddAssign for MicroJoules {
    fn add_assign(&mut self, other: MicroJoules) {
        self.0 += other.0;
    }
}

impl Sum for MicroJoules {
    fn sum<I: Iterator<Item = MicroJoules>>(parts: I) -> MicroJoules {
        MicroJoules(parts.map(|part| part.0).sum())
    }
}

impl Add for Joules {
    type Output = Joules;
    fn add(self, other: Joules) -> Joules {
        Joules(self.0 + other.0)
    }
}

impl AddAssign for Seconds {
    fn add_assign(&mut self, other: Seconds) {
        self.0 += other.0;
    }
}

impl AddAssign for Grams {
    fn add_assign(&mut self, other: Grams) {
        self.0 += other.0;
    }
}

impl fmt::Display for Joules {
    /// Three significant digits with the prefix that fits: `12.3 kJ`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_scaled(f, self.0, &[(1e9, "GJ"), (1e6, "MJ"), (1e3, "kJ"), (1.0, "J"), (1e-3, "mJ")])
    }
}

impl fmt::Display for Watts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_scaled(f, self.0, &[(1e6, "MW"), (1e3, "kW"), (1.0, "W"), (1e-3, "mW")])
    }
}

impl fmt::Display for Grams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_scaled(f, self.0, &[(1e6, "t"), (1e3, "kg"), (1.0, "g"), (1e-3, "mg"), (1e-6, "ug")])
    }
}

impl fmt::Display for GramsPerKilowattHour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} g/kWh", self.0)
    }
}

fn write_scaled(f: &mut fmt::Formatter<'_>, value: f64, scales: &[(f64, &str)]) -> fmt::Result {
    let fitting = scales.iter().find(|(scale, _)| value.abs() >= *scale);
    let base = scales.iter().find(|(scale, _)| *scale == 1.0);
    let &(scale, unit) = match (fitting, scales.last()) {
        _ if value == 0.0 => base.unwrap_or(&(1.0, "")),
        (Some(found), _) | (None, Some(found)) => found,
        (None, None) => &(1.0, ""),
    };
    let scaled = value / scale;
    let decimals = match scaled.abs() {
        x if x >= 99.95 => 0,
        x if x >= 9.995 => 1,
        _ => 2,
    };
    f.pad(&format!("{scaled:.decimals$} {unit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kilowatt_hour_in_france_emits_its_intensity() {
        assert_eq!(GramsPerKilowattHour(41.0).grams(Joules(3.6e6), 1.0), Grams(41.0));
        assert_eq!(GramsPerKilowattHour(41.0).grams(Joules(7.2e6), 1.5), Grams(123.0));
    }

    #[test]
    fn power_times_time_is_energy_and_back() {
        assert_eq!(Watts(250.0) * Seconds(4.0), Joules(1000.0));
        assert_eq!(Joules(1000.0).over(Seconds(4.0)), Some(Watts(250.0)));
        assert_eq!(Joules(1000.0).over(Seconds(0.0)), None);
    }

    #[test]
    fn energies_are_shown_with_three_digits_and_a_prefix() {
        let shown: Vec<String> =
            [0.0, 0.0042, 1.5, 12.34, 999.0, 12_345.0, 3.6e6].map(|j| Joules(j).to_string()).to_vec();
        assert_eq!(shown, ["0.00 J", "4.20 mJ", "1.50 J", "12.3 J", "999 J", "12.3 kJ", "3.60 MJ"]);
    }
}
