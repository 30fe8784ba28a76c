//! The management controller (BMC): power of the whole node, integrated over time.
//!
//! The domain `node` contains everything the other meters measure, and fans and losses besides. It is therefore
//! counted only where the configuration names it (`energy.meter = "bmc"`), and then alone. The power comes from a
//! command that is run every few seconds, or from a file that someone else writes; see `reading` for what may stand
//! in either. Controllers renew their readings once a second at best, so short windows are interpolated.

mod command;
mod reading;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::host::Host;
use super::integrate::PowerIntegrator;
use super::{Domain, Meter, MeterError, MeterErrorKind, Note, Provenance, Reading};
use crate::config::EnergyConfig;
use crate::units::Watts;

/// A file costs little to read.
const FILE_PERIOD: Duration = Duration::from_secs(1);
/// A command costs a process and the attention of a slow controller.
const COMMAND_PERIOD: Duration = Duration::from_secs(5);
/// A command that has not answered by then is ended: a controller answers in well under a second.
const COMMAND_LIMIT: Duration = Duration::from_secs(3);
/// A file that nobody has written for so long shows the past.
const STALE_AFTER: Duration = Duration::from_secs(60);
/// Power is not carried over more than this many samples.
const MOST_SAMPLES: u32 = 6;
/// No node of one operating system draws more.
const NODE_MAX: Watts = Watts(100_000.0);

/// Power of the node.
pub struct BmcMeter {
    domain: [Domain; 1],
    source: Source,
    integrator: PowerIntegrator,
}

enum Source {
    Command(Vec<String>),
    File(PathBuf),
}

impl BmcMeter {
    /// Opens the source that `config` names, and reads it once.
    ///
    /// # Errors
    /// `Fatal` when none is named, or what it gives is not understood.
    pub fn open(host: &Host, config: &EnergyConfig) -> Result<Self, MeterError> {
        let source = match (config.bmc_file.as_os_str().is_empty(), config.bmc_command.is_empty()) {
            (false, true) => Source::File(config.bmc_file.clone()),
            (true, false) => Source::Command(config.bmc_command.clone()),
            _ => return Err(unnamed(host)),
        };
        let period = source.period().max(Duration::from_millis(config.interval_ms));
        let meter = BmcMeter {
            domain: [Domain { name: "node".into(), sensor: "bmc", provenance: Provenance::IntegratedPower }],
            source,
            integrator: PowerIntegrator::new(period * MOST_SAMPLES, NODE_MAX),
        };
        meter.source.power().map_err(|message| failure(MeterErrorKind::Fatal, message))?;
        Ok(meter)
    }
}

impl Meter for BmcMeter {
    fn domains(&self) -> &[Domain] {
        &self.domain
    }

    fn update_period(&self) -> Duration {
        self.source.period()
    }

    fn read(&mut self, now: Duration) -> Result<Reading, MeterError> {
        let power = self.source.power().map_err(|message| failure(MeterErrorKind::Retry, message))?;
        let note = self.integrator.push(now, power);
        Ok(Reading {
            cumulative: vec![self.integrator.cumulative()],
            notes: note.map(|(event, span)| Note { domain: 0, event, span }).into_iter().collect(),
        })
    }
}

impl Source {
    fn period(&self) -> Duration {
        match self {
            Source::Command(_) => COMMAND_PERIOD,
            Source::File(_) => FILE_PERIOD,
        }
    }

    fn power(&self) -> Result<Watts, String> {
        match self {
            Source::Command(words) => {
                let output = command::run(words, COMMAND_LIMIT)?;
                reading::parse(&output).map_err(|what| format!("{}: {what}", words.join(" ")))
            }
            Source::File(path) => power_of_file(path).map_err(|what| format!("{}: {what}", path.display())),
        }
    }
}

fn power_of_file(path: &Path) -> Result<Watts, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    if reading::is_hwmon_power(path) {
        // The kernel makes these anew at each reading; their times say nothing.
        return reading::parse_microwatts(&text);
    }
    let written =
        std::fs::metadata(path).and_then(|file| file.modified()).map_err(|error| error.to_string())?;
    match SystemTime::now().duration_since(written) {
        Ok(age) if age > STALE_AFTER => {
            Err(format!("last written {} s ago, expected within {} s", age.as_secs(), STALE_AFTER.as_secs()))
        }
        // Written in the future: clocks differ between machines, and that it is written at all is what counts.
        _ => reading::parse(&text),
    }
}

fn unnamed(host: &Host) -> MeterError {
    let hint = match super::hwmon::node_power_file(host) {
        Some(path) => format!("set energy.bmc_file = {path:?}, which this machine's firmware shows"),
        None => "set energy.bmc_command = [\"ipmitool\", \"dcmi\", \"power\", \"reading\"] (which needs root or the \
                 group that owns /dev/ipmi0), or energy.bmc_file to a file that holds the node's power"
            .into(),
    };
    MeterError {
        sensor: "bmc",
        kind: MeterErrorKind::Gone,
        message: "set one of energy.bmc_command and energy.bmc_file".into(),
        remedy: hint,
    }
}

fn failure(kind: MeterErrorKind, message: String) -> MeterError {
    let remedy = match kind {
        MeterErrorKind::Retry => "the span is recorded as a gap until the power can be read again",
        _ => {
            "see that it prints a number of watts, the output of `ipmitool dcmi power reading`, or Redfish JSON \
              with one PowerConsumedWatts"
        }
    };
    MeterError { sensor: "bmc", kind, message, remedy: remedy.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::CounterEvent;
    use crate::meter::host::write;
    use crate::units::MicroJoules;
    use std::fs::File;

    fn config(command: &[&str], file: PathBuf) -> EnergyConfig {
        EnergyConfig {
            bmc_command: command.iter().map(|word| (*word).to_owned()).collect(),
            bmc_file: file,
            ..EnergyConfig::default()
        }
    }

    #[test]
    fn power_in_a_file_is_integrated_by_trapezoids_and_pauses_are_gaps() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("power.json");
        let show =
            |watts: u32| write(root.path(), "power.json", &format!("{{\"PowerConsumedWatts\": {watts}}}"));
        show(300);
        let mut meter = BmcMeter::open(&Host::this(), &config(&[], file)).unwrap();
        assert_eq!(meter.domains()[0].provenance, Provenance::IntegratedPower);
        let mut at = |s| meter.read(Duration::from_secs(s));
        assert_eq!(at(0).unwrap().cumulative, [MicroJoules(0)]);
        show(500);
        assert_eq!(at(2).unwrap().cumulative, [MicroJoules(800_000_000)]);
        write(root.path(), "power.json", "{}");
        assert_eq!(at(3).unwrap_err().kind, MeterErrorKind::Retry);
        show(500);
        assert_eq!(at(4).unwrap().cumulative, [MicroJoules(1_800_000_000)]);
        let late = at(3600).unwrap();
        assert_eq!(late.cumulative, [MicroJoules(1_800_000_000)]);
        assert_eq!(late.notes[0].event, CounterEvent::Gap);
    }

    #[test]
    fn a_slow_sampler_leaves_no_gaps() {
        let config = EnergyConfig { interval_ms: 10_000, ..config(&["echo", "100 W"], PathBuf::new()) };
        let mut meter = BmcMeter::open(&Host::this(), &config).unwrap();
        let mut at = |s| meter.read(Duration::from_secs(s)).unwrap();
        at(0);
        assert_eq!(at(40), Reading { cumulative: vec![MicroJoules(4_000_000_000)], notes: Vec::new() });
    }

    #[test]
    fn a_file_that_nobody_writes_any_more_is_an_error_and_not_its_last_value() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "power", "310 W");
        let path = root.path().join("power");
        assert_eq!(power_of_file(&path), Ok(Watts(310.0)));
        let old = SystemTime::now() - Duration::from_secs(3600);
        File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
        assert!(power_of_file(&path).unwrap_err().contains("last written 3600 s ago"));
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(old + Duration::from_secs(7200))
            .unwrap();
        assert_eq!(power_of_file(&path), Ok(Watts(310.0)));
    }

    #[test]
    fn a_power_file_of_hwmon_is_in_microwatts_however_old() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "power1_average", "345000000");
        let path = root.path().join("power1_average");
        File::options().write(true).open(&path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(power_of_file(&path), Ok(Watts(345.0)));
    }

    #[test]
    fn what_a_command_prints_is_read_and_what_it_does_wrong_is_told() {
        let mut meter =
            BmcMeter::open(&Host::this(), &config(&["echo", "212 Watts"], PathBuf::new())).unwrap();
        assert!(meter.read(Duration::ZERO).is_ok());
        for (command, expect) in [
            (&["echo", "no"][..], "echo no: expected"),
            (&["false"], "false: ended with exit status: 1"),
            (&["/nonexistent/ipmitool"], "/nonexistent/ipmitool: cannot be run"),
        ] {
            let error = BmcMeter::open(&Host::this(), &config(command, PathBuf::new())).err().unwrap();
            assert_eq!(error.kind, MeterErrorKind::Fatal);
            assert!(error.message.contains(expect), "{error}");
        }
    }

    #[test]
    fn without_a_source_the_file_of_the_firmware_is_recommended() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::fake(root.path(), || ());
        let error = |host: &Host| BmcMeter::open(host, &config(&[], PathBuf::new())).err().unwrap();
        assert!(error(&host).remedy.contains("ipmitool"));
        write(root.path(), "sys/class/hwmon/hwmon0/name", "power_meter");
        write(root.path(), "sys/class/hwmon/hwmon0/power1_average", "1");
        assert!(error(&host).remedy.contains("power1_average"));
    }
}
