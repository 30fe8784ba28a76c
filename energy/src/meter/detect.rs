//! Which meters this machine has, and the choice between them.

use std::path::Path;

use serde::Serialize;

use super::model::{Machine, ModelMeter};
use super::nvml::NvmlMeter;
use super::rapl::{POWERCAP_ROOT, RaplMeter};
use super::{Meter, MeterError};
use crate::config::{EnergyConfig, MeterChoice};

/// Opens the meters the configuration asks for. `auto` takes every counter there is (NVML for GPUs, RAPL for the
/// processor) and models the processor only where it has no counter; the domains never overlap.
///
/// # Errors
/// When a meter that was named is missing or may not be read; the error says what to do.
pub fn detect(config: &EnergyConfig) -> Result<Vec<Box<dyn Meter>>, MeterError> {
    let mut meters: Vec<Box<dyn Meter>> = Vec::new();
    match config.meter {
        MeterChoice::None => {}
        MeterChoice::Nvml => meters.push(Box::new(NvmlMeter::open()?)),
        MeterChoice::Rapl => meters.push(Box::new(RaplMeter::open(Path::new(POWERCAP_ROOT))?)),
        MeterChoice::Model => meters.push(Box::new(ModelMeter::open(config.tdp_watts)?)),
        MeterChoice::Auto => {
            if let Ok(nvml) = NvmlMeter::open() {
                meters.push(Box::new(nvml));
            }
            match RaplMeter::open(Path::new(POWERCAP_ROOT)) {
                Ok(rapl) => meters.push(Box::new(rapl)),
                Err(_) => meters.push(Box::new(ModelMeter::open(config.tdp_watts)?)),
            }
        }
    }
    Ok(meters)
}

/// What is known of one meter on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// `nvml`, `rapl`, `model`.
    pub meter: &'static str,
    /// True when it can be read by this user.
    pub available: bool,
    /// What it covers, or why it does not work.
    pub detail: String,
    /// What to do when it does not work.
    pub remedy: Option<String>,
}

/// Tries every meter and tells what works, what does not and what to do.
pub fn probe(config: &EnergyConfig) -> Vec<Finding> {
    let model = ModelMeter::open(config.tdp_watts)
        .map(|_| format!("modelled, not measured: {}", Machine::detect(config.tdp_watts).describe()));
    vec![
        finding("nvml", NvmlMeter::open().map(|meter| covered(&meter))),
        finding("rapl", RaplMeter::open(Path::new(POWERCAP_ROOT)).map(|meter| covered(&meter))),
        finding("model", model),
    ]
}

fn finding(meter: &'static str, tried: Result<String, MeterError>) -> Finding {
    match tried {
        Ok(detail) => Finding { meter, available: true, detail, remedy: None },
        Err(error) => Finding { meter, available: false, detail: error.message, remedy: Some(error.remedy) },
    }
}

fn covered(meter: &dyn Meter) -> String {
    let names: Vec<&str> = meter.domains().iter().map(|domain| domain.name.as_ref()).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_always_finds_something_to_count_and_none_finds_nothing() {
        let auto = detect(&EnergyConfig::default()).unwrap();
        assert!(auto.iter().map(|meter| meter.domains().len()).sum::<usize>() > 0);
        let none = EnergyConfig { meter: MeterChoice::None, ..EnergyConfig::default() };
        assert!(detect(&none).unwrap().is_empty());
    }

    #[test]
    fn what_the_probe_calls_missing_is_an_error_with_a_remedy_when_named() {
        let config = EnergyConfig::default();
        for finding in probe(&config) {
            let meter = match finding.meter {
                "nvml" => MeterChoice::Nvml,
                "rapl" => MeterChoice::Rapl,
                _ => MeterChoice::Model,
            };
            let named = detect(&EnergyConfig { meter, ..config.clone() });
            assert_eq!(named.is_ok(), finding.available, "{finding:?}");
            assert_eq!(finding.available, finding.remedy.is_none(), "{finding:?}");
        }
    }
}
