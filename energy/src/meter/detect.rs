//! Which meters this machine has, and the choice between them.

use std::time::Duration;

use serde::Serialize;

use super::bmc::BmcMeter;
use super::host::Host;
use super::model::ModelMeter;
use super::nvml::NvmlMeter;
use super::{Meter, MeterError, MeterErrorKind, hwmon, perf, rapl, register, trace};
use crate::config::{EnergyConfig, MeterChoice, RaplScope};

/// The meters a configuration comes to on this machine.
pub struct Detected {
    /// The meters to read.
    pub meters: Vec<Box<dyn Meter>>,
    /// Sensors that are there but are not counted: the user should hear why and what to do.
    pub passed_over: Vec<MeterError>,
    /// Longest time between two readings in which no counter can wrap unseen.
    pub longest_pause: Duration,
}

/// Opens the meters the configuration asks for.
///
/// `auto` takes NVML for GPUs, and for the processor the first that counts of: perf events (of the domains that
/// powercap has too, where it shows any), powercap, hwmon, the model. The domains never overlap. A node's power (bmc)
/// contains them all, so it is taken only when named, and alone.
///
/// # Errors
/// When a meter that was named is missing or may not be read; the error says what to do.
pub fn detect(config: &EnergyConfig) -> Result<Detected, MeterError> {
    let host = Host::this();
    let mut found = Detected::nothing();
    match config.meter {
        MeterChoice::None => {}
        MeterChoice::Nvml => found.meters.push(Box::new(NvmlMeter::open()?)),
        MeterChoice::Replay => {
            let played = trace::read(config.trace.as_deref().ok_or_else(trace::unnamed)?)?;
            found.meters.extend(played.into_iter().map(|meter| Box::new(meter) as Box<dyn Meter>));
        }
        MeterChoice::Auto => {
            let nvml = NvmlMeter::open().map(|meter| found.meters.push(Box::new(meter)));
            found.pass_over_unless_gone(nvml.err());
            found.add_processor(&host, config)?;
        }
        _ => found.add_named(&host, config)?,
    }
    Ok(found)
}

impl Detected {
    fn nothing() -> Self {
        let longest_pause = register::longest_pause(None, register::PACKAGE);
        Detected { meters: Vec::new(), passed_over: Vec::new(), longest_pause }
    }

    /// Adds the meter that the configuration names, which must work.
    fn add_named(&mut self, host: &Host, config: &EnergyConfig) -> Result<(), MeterError> {
        let opened = match config.meter {
            MeterChoice::Perf => self.add_perf(host, config.rapl_scope),
            MeterChoice::Rapl => self.add_rapl(host, config.rapl_scope),
            MeterChoice::Hwmon => self.add_hwmon(host, config),
            MeterChoice::Bmc => BmcMeter::open(host, config).map(|meter| self.meters.push(Box::new(meter))),
            _ => ModelMeter::open(host, config).map(|meter| self.meters.push(Box::new(meter))),
        };
        opened.map_err(|error| explain(host, error))
    }

    /// Adds the best meter of the processor that there is.
    fn add_processor(&mut self, host: &Host, config: &EnergyConfig) -> Result<(), MeterError> {
        let scope = config.rapl_scope;
        let mut failures = Vec::new();
        for open in [
            Box::new(|found: &mut Self| found.add_perf(host, scope)) as Box<dyn Fn(&mut Self) -> _>,
            Box::new(|found: &mut Self| found.add_rapl(host, scope)),
            Box::new(|found: &mut Self| found.add_hwmon(host, config)),
        ] {
            match open(self) {
                Ok(()) => return Ok(()),
                Err(error) => failures.push(error),
            }
        }
        // Only now does it matter that a counter is there and cannot be used.
        for error in failures {
            self.pass_over_unless_gone(Some(error));
        }
        self.meters.push(Box::new(ModelMeter::open(host, config)?));
        Ok(())
    }

    fn add_perf(&mut self, host: &Host, scope: RaplScope) -> Result<(), MeterError> {
        let zones = rapl::zones(host, scope).ok();
        let names: Option<Vec<String>> = zones.map(|zones| zones.into_iter().map(|(name, _)| name).collect());
        let tried = perf::open(host, scope, names.as_deref())?;
        let uncounted = names.iter().flatten().filter(|name| !tried.domains.contains(name));
        self.passed_over.extend(uncounted.map(|name| only_in_powercap(name)));
        self.meters.extend(tried.meters.into_iter().map(|meter| Box::new(meter) as Box<dyn Meter>));
        self.passed_over.extend(tried.left_out);
        Ok(())
    }

    fn add_rapl(&mut self, host: &Host, scope: RaplScope) -> Result<(), MeterError> {
        let powercap = rapl::open(host, scope)?;
        self.longest_pause = self.longest_pause.min(powercap.longest_pause);
        self.meters.extend(powercap.tried.meters.into_iter().map(|meter| Box::new(meter) as Box<dyn Meter>));
        self.passed_over.extend(powercap.tried.left_out);
        Ok(())
    }

    fn add_hwmon(&mut self, host: &Host, config: &EnergyConfig) -> Result<(), MeterError> {
        let sensors = hwmon::open(host, Duration::from_millis(config.interval_ms))?;
        self.meters.extend(sensors.meters);
        self.passed_over.extend(sensors.left_out);
        Ok(())
    }

    /// Keeps what the user should hear: not that something is absent.
    fn pass_over_unless_gone(&mut self, error: Option<MeterError>) {
        self.passed_over.extend(error.filter(|error| error.kind != MeterErrorKind::Gone));
    }
}

fn only_in_powercap(name: &str) -> MeterError {
    MeterError {
        sensor: "perf",
        kind: MeterErrorKind::Gone,
        message: format!("powercap has the domain {name} and perf events have not: it is not counted"),
        remedy: "use energy.meter = \"rapl\" to count all that powercap has".into(),
    }
}

/// What is known of one meter on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// `nvml`, `perf`, `rapl`, `hwmon`, `bmc`, `model`.
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
    let host = Host::this();
    let mut findings = vec![finding("nvml", NvmlMeter::open().map(|meter| names(meter.domains())))];
    findings.extend(probe_processor(&host, config));
    findings
}

fn probe_processor(host: &Host, config: &EnergyConfig) -> Vec<Finding> {
    let covered = |choice: MeterChoice| {
        let mut found = Detected::nothing();
        found.add_named(host, &EnergyConfig { meter: choice, ..config.clone() })?;
        let domains = found.meters.iter().map(|meter| names(meter.domains()));
        let left_out = found.passed_over.into_iter().map(|error| error.message);
        Ok(domains.chain(left_out).collect::<Vec<_>>().join(", "))
    };
    let model = ModelMeter::open(host, config)
        .map(|meter| format!("modelled, not measured: {}", meter.machine().describe()));
    vec![
        finding("perf", covered(MeterChoice::Perf)),
        finding("rapl", covered(MeterChoice::Rapl)),
        finding("hwmon", covered(MeterChoice::Hwmon)),
        finding("bmc", covered(MeterChoice::Bmc)),
        finding("model", model),
    ]
}

fn finding(meter: &'static str, tried: Result<String, MeterError>) -> Finding {
    match tried {
        Ok(detail) => Finding { meter, available: true, detail, remedy: None },
        Err(error) => Finding { meter, available: false, detail: error.message, remedy: Some(error.remedy) },
    }
}

fn names(domains: &[super::Domain]) -> String {
    domains.iter().map(|domain| domain.name.as_ref()).collect::<Vec<_>>().join(", ")
}

/// Adds where this is, when that is why a counter is absent.
fn explain(host: &Host, error: MeterError) -> MeterError {
    let sensor_of_metal = ["perf", "rapl", "hwmon"].contains(&error.sensor);
    match host.confinement() {
        Some(place) if sensor_of_metal && error.kind == MeterErrorKind::Gone => {
            let message =
                format!("{}; this is {place}, and few hosts pass their counters through", error.message);
            MeterError { message, ..error }
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::host::write;
    use crate::meter::perf::PerfEvent;
    use std::cell::Cell;
    use std::fs::File;
    use std::io::{Seek, Write};
    use std::path::Path;

    /// Which counters a fake machine has.
    #[derive(Clone, Copy, Default)]
    struct Has {
        perf: bool,
        perf_allowed: bool,
        powercap: bool,
        hwmon: bool,
        psys: bool,
    }

    fn machine(has: Has) -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().to_owned();
        if has.perf {
            let device = "sys/bus/event_source/devices/power";
            write(&path, &format!("{device}/type"), "9");
            write(&path, &format!("{device}/cpumask"), "0");
            for (event, config) in [("energy-pkg", 2), ("energy-ram", 3), ("energy-psys", 5)] {
                write(&path, &format!("{device}/events/{event}"), &format!("event=0x0{config}"));
                write(&path, &format!("{device}/events/{event}.scale"), "1e-6");
                write(&path, &format!("{device}/events/{event}.unit"), "Joules");
            }
        }
        let time = Cell::new(0);
        let show = move || show_counters(&path, has, time.replace(time.get() + 1));
        show();
        let host = Host::fake(root.path(), show);
        let host = if has.perf_allowed { host.with_events(rising) } else { host };
        (root, host)
    }

    fn show_counters(root: &Path, has: Has, time: u64) {
        let mut zones = Vec::new();
        if has.powercap {
            zones.push(("intel-rapl:0", "package-0", 100));
        }
        if has.psys {
            zones.push(("intel-rapl:1", "psys", 200));
        }
        for (zone, name, rise) in zones {
            write(root, &format!("sys/class/powercap/{zone}/name"), name);
            write(root, &format!("sys/class/powercap/{zone}/energy_uj"), &(rise * time).to_string());
            // 10 kJ: at 1 kW half of it lasts 5 s.
            write(root, &format!("sys/class/powercap/{zone}/max_energy_range_uj"), "10000000000");
        }
        if has.hwmon {
            write(root, "sys/class/hwmon/hwmon0/name", "amd_energy");
            write(root, "sys/class/hwmon/hwmon0/energy1_label", "Esocket0");
            write(root, "sys/class/hwmon/hwmon0/energy1_input", &(time * 50).to_string());
        }
    }

    fn rising(event: &PerfEvent, _: u32) -> std::io::Result<File> {
        let mut file = tempfile::tempfile()?;
        for n in 1..100u64 {
            file.write_all(&(n * event.config * 1_000).to_ne_bytes())?;
        }
        file.rewind()?;
        Ok(file)
    }

    fn check(has: Has, scope: RaplScope, expect: &[(&str, &str)]) -> Detected {
        let (_root, host) = machine(has);
        let mut found = Detected::nothing();
        let config = EnergyConfig { rapl_scope: scope, ..EnergyConfig::default() };
        found.add_processor(&host, &config).unwrap();
        let domains = found.meters.iter().flat_map(|meter| meter.domains());
        let domains: Vec<_> = domains.map(|domain| (domain.sensor, domain.name.as_ref())).collect();
        assert_eq!(domains, expect);
        found
    }

    const NOTHING: Has = Has { perf: false, perf_allowed: false, powercap: false, hwmon: false, psys: false };
    const EVERYTHING: Has = Has { perf: true, perf_allowed: true, powercap: true, hwmon: true, psys: true };

    #[test]
    fn perf_events_come_first_with_the_domains_that_powercap_has_too() {
        check(EVERYTHING, RaplScope::Package, &[("perf", "package-0")]);
        check(EVERYTHING, RaplScope::Psys, &[("perf", "psys")]);
        let alone = Has { powercap: false, psys: false, ..EVERYTHING };
        check(alone, RaplScope::Package, &[("perf", "package-0"), ("perf", "dram-0")]);
    }

    #[test]
    fn a_domain_that_powercap_alone_has_is_named() {
        let (root, host) = machine(EVERYTHING);
        write(root.path(), "sys/class/powercap/intel-rapl:2/name", "package-1");
        let mut found = Detected::nothing();
        found.add_perf(&host, RaplScope::Package).unwrap();
        assert_eq!(found.meters.len(), 1);
        assert!(found.passed_over[0].message.contains("powercap has the domain package-1"));
    }

    #[test]
    fn the_power_of_the_node_stands_alone() {
        let command = ["echo", "250 Watts"].map(String::from).to_vec();
        let config =
            EnergyConfig { meter: MeterChoice::Bmc, bmc_command: command, ..EnergyConfig::default() };
        let meters = detect(&config).unwrap().meters;
        let domains: Vec<_> = meters.iter().flat_map(|meter| meter.domains()).collect();
        assert_eq!(domains.len(), 1);
        assert_eq!((domains[0].sensor, domains[0].name.as_ref()), ("bmc", "node"));
    }

    #[test]
    fn powercap_stands_in_for_forbidden_events_in_silence_and_brings_its_longest_pause() {
        let found =
            check(Has { perf_allowed: false, ..EVERYTHING }, RaplScope::Package, &[("rapl", "package-0")]);
        assert_eq!(found.passed_over, []);
        assert_eq!(found.longest_pause, Duration::from_secs(5));
    }

    #[test]
    fn hwmon_stands_in_for_both_and_the_model_for_all() {
        check(Has { hwmon: true, ..NOTHING }, RaplScope::Package, &[("hwmon", "package-0")]);
        let found = check(NOTHING, RaplScope::Package, &[("model", "cpu"), ("model", "ram")]);
        assert_eq!(found.passed_over, []);
    }

    #[test]
    fn the_model_stands_in_for_a_forbidden_counter_aloud() {
        let forbidden = Has { perf: true, ..NOTHING };
        let found = check(forbidden, RaplScope::Package, &[("model", "cpu"), ("model", "ram")]);
        assert_eq!(found.passed_over.len(), 1);
        assert!(found.passed_over[0].remedy.contains("perf_event_paranoid"));
    }

    #[test]
    fn the_probe_tells_what_works_and_where_a_counter_is_missing_why() {
        let (root, host) = machine(Has { perf: true, powercap: true, ..NOTHING });
        write(root.path(), "proc/cpuinfo", "flags : fpu hypervisor");
        let findings = probe_processor(&host, &EnergyConfig::default());
        let works: Vec<_> = findings.iter().map(|finding| (finding.meter, finding.available)).collect();
        assert_eq!(
            works,
            [("perf", false), ("rapl", true), ("hwmon", false), ("bmc", false), ("model", true)]
        );
        assert_eq!(findings[1].detail, "package-0");
        assert!(findings[0].remedy.as_ref().unwrap().contains("perf_event_paranoid"));
        assert!(findings[2].detail.contains("this is a virtual machine"), "{:?}", findings[2]);
    }

    #[test]
    fn auto_always_finds_something_to_count_and_none_finds_nothing() {
        let auto = detect(&EnergyConfig::default()).unwrap().meters;
        assert!(auto.iter().map(|meter| meter.domains().len()).sum::<usize>() > 0);
        let none = EnergyConfig { meter: MeterChoice::None, ..EnergyConfig::default() };
        assert!(detect(&none).unwrap().meters.is_empty());
    }

    #[test]
    fn what_the_probe_calls_missing_is_an_error_with_a_remedy_when_named() {
        let config = EnergyConfig::default();
        for finding in probe(&config) {
            let meter = match finding.meter {
                "nvml" => MeterChoice::Nvml,
                "perf" => MeterChoice::Perf,
                "rapl" => MeterChoice::Rapl,
                "hwmon" => MeterChoice::Hwmon,
                "bmc" => MeterChoice::Bmc,
                _ => MeterChoice::Model,
            };
            let named = detect(&EnergyConfig { meter, ..config.clone() });
            assert_eq!(named.is_ok(), finding.available, "{finding:?}");
            assert_eq!(finding.available, finding.remedy.is_none(), "{finding:?}");
        }
    }
}
