//! An estimate for a terminal and for programs.

use serde_json::{Map, Value, json};

use super::estimate::Estimate;
use super::range::Range;
use crate::units::{Grams, JOULES_PER_KILOWATT_HOUR, Joules, Watts};

const JOULES_PER_MEGAWATT_HOUR: f64 = 1e3 * JOULES_PER_KILOWATT_HOUR;
const GRAMS_PER_TONNE: f64 = 1e6;

impl Estimate {
    /// For programs: the likely values at the top, `range` and `factors` (with their sources) below. A value that
    /// cannot be known is null.
    pub fn to_json(&self) -> Map<String, Value> {
        let per = |range: Option<Range>, unit: f64| range.map(|range| range / Range::exact(unit));
        let ranges = [
            ("hours", self.hours),
            ("chip_hours", Some(self.chip_hours)),
            ("joules", self.joules),
            ("mwh", per(self.joules, JOULES_PER_MEGAWATT_HOUR)),
            ("grams", self.grams),
            ("tco2e", per(self.grams, GRAMS_PER_TONNE)),
            ("embodied_grams", self.embodied_grams),
        ];
        let mut object = Map::new();
        object.insert("flops".into(), self.inputs.work.flops().into());
        object.insert("chips".into(), self.inputs.work.chips().into());
        for (name, range) in ranges {
            object.insert(name.into(), range.map(|range| range.mid).into());
        }
        let range: Map<String, Value> =
            ranges.iter().map(|(name, range)| ((*name).into(), json!(range))).collect();
        object.insert("range".into(), range.into());
        let factors: Map<String, Value> =
            self.factors().into_iter().map(|(name, factor)| (name.into(), json!(factor))).collect();
        object.insert("factors".into(), factors.into());
        let embodied = self.inputs.embodied.as_ref().map(|embodied| {
            json!({
                "kg_per_chip": embodied.kg_per_chip,
                "lifetime_years": embodied.lifetime_years,
                "boundary": embodied.boundary,
                "source": embodied.source,
            })
        });
        object.insert("embodied".into(), embodied.into());
        object
    }

    /// For a terminal: the costs, then the factors with their sources.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let mut line = |label: &str, what: String| text.push_str(&format!("{label:<12} {what}\n"));
        if let Some(flops) = self.inputs.work.flops() {
            line("work", format!("{flops:.3e} FLOPs"));
        }
        if let (Some(hours), Some(chips)) = (self.hours, self.inputs.work.chips()) {
            let unit = if chips == 1.0 { "chip" } else { "chips" };
            line("time", format!("{} on {} {unit}", show(hours, duration), number(chips)));
        }
        // Of a short run they are nothing that anybody rents.
        if self.hours.is_none() || self.chip_hours.mid >= 1.0 {
            line("chip-hours", show(self.chip_hours, number));
        }
        let grams = |range| show(range, |grams| Grams(grams).to_string());
        match (self.joules, self.grams) {
            (Some(joules), Some(emitted)) => {
                line("energy", show(joules, energy));
                line("carbon", format!("{} CO2e", grams(emitted)));
            }
            _ => line("energy", "unknown: nobody has published what this chip draws in use".into()),
        }
        if let (Some(making), Some(embodied)) = (self.embodied_grams, &self.inputs.embodied) {
            line(
                "embodied",
                format!(
                    "{} CO2e beside it, of {} kg a chip ({}) over {} years; {}",
                    grams(making),
                    embodied.kg_per_chip,
                    embodied.boundary,
                    embodied.lifetime_years,
                    embodied.source
                ),
            );
        }
        line("from", String::new());
        for (name, factor) in self.factors() {
            let (label, shown): (&str, fn(f64) -> String) = match name {
                "peak_flops" => ("peak", |peak| format!("{} TFLOP/s", number(peak / 1e12))),
                "watts_per_chip" => ("power", |watts| Watts(watts).to_string()),
                "grams_per_kwh" => ("intensity", |grams| format!("{} g/kWh", number(grams))),
                other => (other, number),
            };
            line(&format!("  {label}"), format!("{}: {}", show(factor.range, shown), factor.source));
        }
        text.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
    }
}

/// `1.2 h (0.9 h to 1.6 h)`, or the number alone when it is exact.
fn show(range: Range, shown: impl Fn(f64) -> String) -> String {
    match range.is_exact() {
        true => shown(range.mid),
        false => format!("{} ({} to {})", shown(range.mid), shown(range.low), shown(range.high)),
    }
}

/// Three decimals at most, fewer for larger numbers.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        x if x >= 999.5 => 0,
        x if x >= 99.95 => 1,
        x if x >= 9.995 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

fn duration(hours: f64) -> String {
    match hours {
        h if h < 1.0 / 60.0 => format!("{} s", number(h * 3600.0)),
        h if h < 1.0 => format!("{} min", number(h * 60.0)),
        h if h < 72.0 => format!("{} h", number(h)),
        h => format!("{} days", number(h / 24.0)),
    }
}

/// Large runs are compared in megawatt-hours.
fn energy(joules: f64) -> String {
    match joules {
        j if j < JOULES_PER_KILOWATT_HOUR => Joules(j).to_string(),
        j if j < JOULES_PER_MEGAWATT_HOUR => format!("{} kWh", number(j / JOULES_PER_KILOWATT_HOUR)),
        j => format!("{} MWh", number(j / JOULES_PER_MEGAWATT_HOUR)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([0.0386, 1.1, 1230.0, 12.5, 0.0].map(number), ["0.039", "1.1", "1230", "12.5", "0"]);
        assert_eq!([0.01, 0.5, 3.0, 355.2].map(duration), ["36 s", "30 min", "3 h", "14.8 days"]);
        assert_eq!([3.6e5, 7.2e6, 4.6332e12].map(energy), ["360 kJ", "2 kWh", "1287 MWh"]);
        assert_eq!(show(Range { low: 1.0, mid: 2.0, high: 4.0 }, number), "2 (1 to 4)");
        assert_eq!(show(Range::exact(2.0), number), "2");
    }
}
