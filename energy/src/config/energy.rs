//! `[energy]`: how joules are counted.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Problem, problem};

/// `[energy]`: how joules are counted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EnergyConfig {
    /// Where joules come from: auto, nvml, perf, rapl, hwmon, bmc, model, replay or none.
    pub meter: MeterChoice,
    /// Time between two samples of the counters, in milliseconds: 10 to 10000.
    pub interval_ms: u64,
    /// Thermal design power of all processor sockets together, in watts, for the modelled meter; from a table of
    /// processors when absent.
    pub tdp_watts: Option<f64>,
    /// What RAPL (perf, rapl) counts: package (the processors and their memory) or psys (the whole platform, where
    /// the board has that counter). The one contains the other, so never both.
    pub rapl_scope: RaplScope,
    /// Whose CPU time the modelled meter counts: process, or cgroup (everything in this container or job).
    pub model_scope: ModelScope,
    /// For the meter bmc: the command that prints the power of the node, with its arguments, such as
    /// ["ipmitool", "dcmi", "power", "reading"].
    pub bmc_command: Vec<String>,
    /// For the meter bmc: a file that holds the power of the node, written anew by someone else: Redfish JSON, the
    /// output of ipmitool, a number of watts, or a power file of hwmon. Empty: none.
    pub bmc_file: PathBuf,
    /// The recorded trace that the meter `replay` plays back.
    pub trace: Option<PathBuf>,
}

/// A meter, by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MeterChoice {
    /// Every counter there is; the processor is modelled where it has none.
    #[default]
    Auto,
    /// Energy counters of NVIDIA GPUs only.
    Nvml,
    /// Energy counters of the processor and its memory only, read through perf events.
    Perf,
    /// Energy counters of the processor and its memory only, read through powercap.
    Rapl,
    /// Sensors of the processor that its own driver shows in hwmon only: AMD energy counters, NVIDIA Grace power.
    Hwmon,
    /// Power of the whole node, from its management controller, in place of all other meters.
    Bmc,
    /// CPU time times a power curve; nothing is measured.
    Model,
    /// A recorded trace; for tests and for looking into a past run.
    Replay,
    /// Count nothing.
    None,
}

/// What RAPL counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RaplScope {
    /// The processor packages and the memory beside them; psys only where there is no package.
    #[default]
    Package,
    /// The whole platform in one counter.
    Psys,
}

/// Whose CPU time is modelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModelScope {
    /// This process.
    #[default]
    Process,
    /// Everything in the control group (version 2) of this process.
    Cgroup,
}

impl Default for EnergyConfig {
    fn default() -> Self {
        EnergyConfig {
            meter: MeterChoice::Auto,
            interval_ms: 100,
            tdp_watts: None,
            rapl_scope: RaplScope::Package,
            model_scope: ModelScope::Process,
            bmc_command: Vec::new(),
            bmc_file: PathBuf::new(),
            trace: None,
        }
    }
}

impl EnergyConfig {
    /// All problems at once; empty when the section can be used.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if !(10..=10_000).contains(&self.interval_ms) {
            problems.push(problem("energy.interval_ms", self.interval_ms, "10 to 10000"));
        }
        if let Some(watts) = self.tdp_watts.filter(|watts| !(*watts > 0.0 && *watts <= 100_000.0)) {
            problems.push(problem("energy.tdp_watts", watts, "above 0 and at most 100000"));
        }
        let (command, file) = (!self.bmc_command.is_empty(), !self.bmc_file.as_os_str().is_empty());
        let mut bmc = |key: &str, message: &str| {
            problems.push(Problem { key: key.into(), message: message.into() });
        };
        match self.meter {
            MeterChoice::Bmc if command && file => {
                bmc("energy.bmc_file", "is given beside energy.bmc_command, expected one of them");
            }
            MeterChoice::Bmc if !command && !file => {
                bmc("energy.bmc_command", "is missing: energy.meter = \"bmc\" needs it or energy.bmc_file");
            }
            MeterChoice::Bmc => {}
            _ if command => bmc("energy.bmc_command", "is given, but energy.meter is not \"bmc\""),
            _ if file => bmc("energy.bmc_file", "is given, but energy.meter is not \"bmc\""),
            _ => {}
        }
        if (self.meter == MeterChoice::Replay) != self.trace.is_some() {
            let message = "belongs with energy.meter = \"replay\": give both or neither".into();
            problems.push(Problem { key: "energy.trace".into(), message });
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(EnergyConfig::default().validate(), []);
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let energy = EnergyConfig { interval_ms: 1, tdp_watts: Some(f64::NAN), ..EnergyConfig::default() };
        assert_eq!(energy.validate().len(), 2);
    }

    #[test]
    fn the_meter_bmc_needs_exactly_one_source_and_no_other_meter_takes_one() {
        use MeterChoice::{Auto, Bmc};
        let command = || vec!["ipmitool".to_owned()];
        let file = || PathBuf::from("power.json");
        for (meter, bmc_command, bmc_file, expect) in [
            (Bmc, command(), PathBuf::new(), None),
            (Bmc, Vec::new(), file(), None),
            (Bmc, Vec::new(), PathBuf::new(), Some("energy.bmc_command")),
            (Bmc, command(), file(), Some("energy.bmc_file")),
            (Auto, command(), PathBuf::new(), Some("energy.bmc_command")),
            (Auto, Vec::new(), file(), Some("energy.bmc_file")),
        ] {
            let problems =
                EnergyConfig { meter, bmc_command, bmc_file, ..EnergyConfig::default() }.validate();
            assert_eq!(problems.first().map(|problem| problem.key.as_str()), expect);
        }
    }

    #[test]
    fn an_unknown_key_is_refused() {
        assert!(serde_json::from_str::<EnergyConfig>(r#"{"meter":"model","intervall_ms":5}"#).is_err());
        assert!(serde_json::from_str::<EnergyConfig>(r#"{"meter":"model","interval_ms":50}"#).is_ok());
    }
}
