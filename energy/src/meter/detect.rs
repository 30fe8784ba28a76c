//! Which meters this machine has, and the choice between them.

use std::path::Path;

use serde::Serialize;

use super::model::ModelMeter;
use super::nvml::NvmlMeter;
use super::rapl::{POWERCAP_ROOT, RaplMeter};
use super::{Meter, MeterError, MeterErrorKind, trace};
use crate::config::{EnergyConfig, MeterChoice};

/// The meters a configuration comes to on this machine.
#[derive(Default)]
pub struct Detected {
    /// The meters to read.
    pub meters: Vec<Box<dyn Meter>>,
    /// Sensors that are there but that `auto` could not use: the user should hear why and what to do.
    pub passed_over: Vec<MeterError>,
}

/// Opens the meters the configuration asks for. `auto` takes every counter there is (NVML for GPUs, RAPL for the
/// processor) and models the processor only where it has no counter; the domains never overlap.
///
/// # Errors
/// When a meter that was named is missing or may not be read; the error says what to do.
pub fn detect(config: &EnergyConfig) -> Result<Detected, MeterError> {
    let mut found = Detected::default();
    match config.meter {
        MeterChoice::None => {}
        MeterChoice::Nvml => found.meters.push(Box::new(NvmlMeter::open()?)),
        MeterChoice::Rapl => found.meters.push(Box::new(RaplMeter::open(Path::new(POWERCAP_ROOT))?)),
        MeterChoice::Model => found.meters.push(Box::new(ModelMeter::open(config.tdp_watts)?)),
        MeterChoice::Replay => {
            let played = trace::read(config.trace.as_deref().ok_or_else(trace::unnamed)?)?;
            found.meters.extend(played.into_iter().map(|meter| Box::new(meter) as Box<dyn Meter>));
        }
        MeterChoice::Auto => {
            found.add_if_usable(NvmlMeter::open());
            if !found.add_if_usable(RaplMeter::open(Path::new(POWERCAP_ROOT))) {
                found.meters.push(Box::new(ModelMeter::open(config.tdp_watts)?));
            }
        }
    }
    Ok(found)
}

impl Detected {
    /// Adds a meter that could be opened; true when it could.
    fn add_if_usable(&mut self, opened: Result<impl Meter + 'static, MeterError>) -> bool {
        match opened {
            Ok(meter) => {
                self.meters.push(Box::new(meter));
                true
            }
            Err(error) => {
                if error.kind != MeterErrorKind::Gone {
                    self.passed_over.push(error);
                }
                false
            }
        }
    }
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
        .map(|meter| format!("modelled, not measured: {}", meter.machine().describe()));
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
        let auto = detect(&EnergyConfig::default()).unwrap().meters;
        assert!(auto.iter().map(|meter| meter.domains().len()).sum::<usize>() > 0);
        let none = EnergyConfig { meter: MeterChoice::None, ..EnergyConfig::default() };
        assert!(detect(&none).unwrap().meters.is_empty());
    }

    #[test]
    fn a_forbidden_counter_is_passed_over_aloud_and_a_missing_one_in_silence() {
        let error = |kind| MeterError { sensor: "rapl", kind, message: "no".into(), remedy: "do".into() };
        let mut found = Detected::default();
        assert!(!found.add_if_usable(Err::<RaplMeter, _>(error(MeterErrorKind::Gone))));
        assert!(!found.add_if_usable(Err::<RaplMeter, _>(error(MeterErrorKind::Fatal))));
        assert_eq!(found.passed_over, [error(MeterErrorKind::Fatal)]);
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
