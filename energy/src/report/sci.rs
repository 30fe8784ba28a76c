//! Software carbon intensity, ISO/IEC 21031:2024: SCI = ((E * I) + M) / R.
//!
//! E is the energy of the building that the software drew, I the carbon intensity where it was drawn, M the share of
//! the hardware's making, R the functional unit. Offsets and contracts have no place in it. Without R there is no
//! SCI; without M declared it is given for E * I alone, and says so.

use super::account::Account;
use crate::carbon::Accounting;
use crate::config::EmbodiedConfig;
use crate::units::{Grams, Seconds};

/// R: what the emissions are counted for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FunctionalUnit {
    /// A token trained on.
    #[default]
    Token,
    /// A step of the optimizer.
    Step,
    /// A run.
    Run,
}

/// A software carbon intensity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sci {
    /// Grams of CO2-equivalent for each functional unit.
    pub grams: Grams,
    /// What they are counted for.
    pub per: FunctionalUnit,
    /// How many of them there were: R.
    pub units: u64,
    /// E * I.
    pub operational: Grams,
    /// M; `None`: not declared, and not in the sum.
    pub embodied: Option<Grams>,
}

impl FunctionalUnit {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            FunctionalUnit::Token => "token",
            FunctionalUnit::Step => "step",
            FunctionalUnit::Run => "run",
        }
    }

    fn count(self, account: &Account) -> u64 {
        match self {
            FunctionalUnit::Token => account.tokens,
            FunctionalUnit::Step => account.steps,
            FunctionalUnit::Run => account.runs,
        }
    }
}

impl Account {
    /// Its software carbon intensity; `None` when the energy is unknown, when there was no such unit, or when the
    /// grams are those of contracts.
    pub fn sci(&self, per: FunctionalUnit) -> Option<Sci> {
        let operational = self.emissions()?;
        let units = per.count(self);
        let of_contracts = self.bases.iter().any(|(_, accounting)| *accounting == Accounting::Market);
        if units == 0 || of_contracts {
            return None;
        }
        let embodied = self.embodied;
        let all = operational.0 + embodied.map_or(0.0, |grams| grams.0);
        Some(Sci { grams: Grams(all / units as f64), per, units, operational, embodied })
    }
}

const HOURS_PER_YEAR: f64 = 365.25 * 24.0;

/// M = TE * TS * RS: the hardware's making, times the time reserved over its life, times the part reserved.
pub(super) fn embodied_share(hardware: &EmbodiedConfig, reserved: Seconds) -> Grams {
    let of_its_life = reserved.0 / 3600.0 / (hardware.lifetime_years * HOURS_PER_YEAR);
    Grams(hardware.kg * 1000.0 * of_its_life * hardware.share)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification: 1000 kg, 4 years, one hour reserved, about 28 g.
    #[test]
    fn the_example_of_the_specification_comes_out() {
        let server =
            EmbodiedConfig { kg: 1000.0, lifetime_years: 4.0, share: 1.0, boundary: "server".into() };
        let grams = embodied_share(&server, Seconds(3600.0)).0;
        assert!((28.0..29.0).contains(&grams), "{grams}");
        let half = embodied_share(&EmbodiedConfig { share: 0.5, ..server }, Seconds(3600.0)).0;
        assert_eq!(half, grams / 2.0);
    }
}
