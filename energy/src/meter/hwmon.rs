//! Sensors of the processor that only its own driver shows, in hwmon (`/sys/class/hwmon`).
//!
//! | driver | sensor | domain | method |
//! |---|---|---|---|
//! | `amd_energy`, `zenergy` | `energyN_input` labelled `EsocketN`, uJ | `package-N` | counter |
//! | `power_meter` (ACPI) named `Grace Power Socket N` | `power1_average`, uW | `package-N` | integrated power |
//!
//! Sensors of cores lie inside their socket, and those of unknown drivers belong to something else (a graphics card,
//! a power supply): neither is counted. An ACPI power meter of another name measures the whole node, which the meter
//! `bmc` counts in place of all others; see [`node_power_file`].
//!
//! Sources: Linux `Documentation/ABI/testing/sysfs-class-hwmon`, `Documentation/hwmon/amd_energy.rst` (up to 5.12),
//! NVIDIA Grace Performance Tuning Guide, "Power and Thermals".

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::host::{self, Host, list, number_in};
use super::integrate::PowerIntegrator;
use super::register::{PACKAGE, Register, RegisterMeter};
use super::trial::try_out;
use super::{Domain, Meter, MeterError, MeterErrorKind, Note, Provenance, Reading};
use crate::units::Watts;

const HWMON: &str = "/sys/class/hwmon";

/// Averages that are renewed more often are still read at this pace.
const SHORTEST_PERIOD: Duration = Duration::from_millis(50);
/// For a sensor that does not tell over which time it averages.
const USUAL_PERIOD: Duration = Duration::from_secs(1);
/// Power is not carried over more than this many samples.
const MOST_SAMPLES: u32 = 10;

/// Meters in hwmon, and what was left out and why.
#[derive(Default)]
pub struct Sensors {
    /// The meters to read.
    pub meters: Vec<Box<dyn Meter>>,
    /// Sensors that are there and are not read.
    pub left_out: Vec<MeterError>,
}

/// Opens the sensors of `host`'s processors, to be sampled at `interval`: energy counters, or else power.
///
/// # Errors
/// `Gone` when there are none; `Fatal` when they may not be read.
pub fn open(host: &Host, interval: Duration) -> Result<Sensors, MeterError> {
    let counters = energy_files(host)
        .into_iter()
        .map(|(name, path)| {
            let register = Register::open_text(&path).map_err(|error| unreadable(&path, &error))?;
            Ok(RegisterMeter::new(&name, "hwmon", register, None))
        })
        .collect::<Result<Vec<_>, MeterError>>()?;
    if !counters.is_empty() {
        let tried = try_out(host, "hwmon", counters)?;
        let meters = tried.meters.into_iter().map(|meter| Box::new(meter) as Box<dyn Meter>).collect();
        return Ok(Sensors { meters, left_out: tried.left_out });
    }
    let mut sensors = Sensors::default();
    for (name, path) in power_files(host) {
        sensors.meters.push(Box::new(PowerMeter::open(&name, &path, interval)?));
    }
    if sensors.meters.is_empty() {
        return Err(absent(format!("{HWMON}: no sensor of a processor")));
    }
    Ok(sensors)
}

/// The power file of a whole node, if the firmware shows one: what `energy.bmc_file` may be set to.
pub fn node_power_file(host: &Host) -> Option<PathBuf> {
    let meters = acpi_meters(host).into_iter();
    meters.filter(|(label, _)| !label.to_lowercase().contains("socket")).map(|(_, path)| path).next()
}

/// The meter of one power sensor.
struct PowerMeter {
    domain: [Domain; 1],
    file: File,
    path: PathBuf,
    period: Duration,
    integrator: PowerIntegrator,
}

impl PowerMeter {
    fn open(name: &str, path: &Path, interval: Duration) -> Result<Self, MeterError> {
        let file = File::open(path).map_err(|error| unreadable(path, &error))?;
        let averaged = host::text(&path.with_file_name("power1_average_interval")).ok();
        let averaged = averaged.and_then(|text| text.parse().ok()).filter(|&ms: &u64| ms > 0);
        let period = averaged.map_or(USUAL_PERIOD, Duration::from_millis).max(SHORTEST_PERIOD);
        let meter = PowerMeter {
            domain: [Domain { name: name.into(), sensor: "hwmon", provenance: Provenance::IntegratedPower }],
            file,
            path: path.into(),
            period,
            integrator: PowerIntegrator::new(period.max(interval) * MOST_SAMPLES, PACKAGE.max_watts),
        };
        meter.power().map_err(|error| unreadable(path, &error))?;
        Ok(meter)
    }

    fn power(&self) -> io::Result<Watts> {
        let mut text = [0u8; 32];
        let length = self.file.read_at(&mut text, 0)?;
        let text = std::str::from_utf8(&text[..length]).ok();
        let microwatts: Option<u64> = text.and_then(|text| text.trim().parse().ok());
        let microwatts =
            microwatts.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a whole number"))?;
        Ok(Watts(microwatts as f64 / 1e6))
    }
}

impl Meter for PowerMeter {
    fn domains(&self) -> &[Domain] {
        &self.domain
    }

    fn update_period(&self) -> Duration {
        self.period
    }

    fn read(&mut self, now: Duration) -> Result<Reading, MeterError> {
        let power = self.power().map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::TimedOut | io::ErrorKind::Other => MeterError {
                kind: MeterErrorKind::Retry,
                remedy: "the span is recorded as a gap until the sensor can be read again".into(),
                ..unreadable(&self.path, &error)
            },
            _ => unreadable(&self.path, &error),
        })?;
        let note = self.integrator.push(now, power);
        Ok(Reading {
            cumulative: vec![self.integrator.cumulative()],
            notes: note.map(|(event, span)| Note { domain: 0, event, span }).into_iter().collect(),
        })
    }
}

/// Domains and files of the energy counters of sockets.
fn energy_files(host: &Host) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    for device in devices(host) {
        if !host::text(&device.join("name")).is_ok_and(|name| name == "amd_energy" || name == "zenergy") {
            continue;
        }
        let is_label = |name: &str| name.starts_with("energy") && name.ends_with("_label");
        for label_file in list(&device, is_label).unwrap_or_default() {
            let label = host::text(&label_file).unwrap_or_default();
            let socket = label.strip_prefix("Esocket").and_then(number_in);
            let file = label_file.to_string_lossy().replace("_label", "_input");
            found.extend(socket.map(|socket| (format!("package-{socket}"), file.into())));
        }
    }
    found
}

/// Domains and files of the power of sockets.
fn power_files(host: &Host) -> Vec<(String, PathBuf)> {
    let meters = acpi_meters(host).into_iter();
    let mut found: Vec<(String, PathBuf)> = meters
        .filter_map(|(label, path)| {
            let socket = number_in(label.strip_prefix("Grace Power Socket")?)?;
            Some((format!("package-{socket}"), path))
        })
        .collect();
    found.sort();
    found.dedup_by(|a, b| a.0 == b.0);
    found
}

/// What the ACPI power meters say they measure (empty where they do not), and their files.
fn acpi_meters(host: &Host) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    for device in devices(host) {
        if !host::text(&device.join("name")).is_ok_and(|name| name == "power_meter") {
            continue;
        }
        // Older kernels show the files in the device that the entry points to.
        for place in [device.join("device"), device] {
            let file = place.join("power1_average");
            if file.exists() {
                found.push((host::text(&place.join("power1_oem_info")).unwrap_or_default(), file));
                break;
            }
        }
    }
    found
}

fn devices(host: &Host) -> Vec<PathBuf> {
    list(&host.path(HWMON), |name| name.starts_with("hwmon")).unwrap_or_default()
}

fn absent(message: String) -> MeterError {
    MeterError {
        sensor: "hwmon",
        kind: MeterErrorKind::Gone,
        message,
        remedy: "it needs an AMD processor with the driver amd_energy or an NVIDIA Grace; \
                 otherwise use energy.meter = \"perf\", \"rapl\" or \"model\""
            .into(),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> MeterError {
    let message = format!("{}: {error}", path.display());
    match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::NotFound, _) | (_, Some(libc::ENODEV | libc::ENXIO)) => absent(message),
        _ => MeterError {
            sensor: "hwmon",
            kind: MeterErrorKind::Fatal,
            message,
            remedy: format!("allow reading with `sudo chmod a+r {}` until the next boot", path.display()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::CounterEvent;
    use crate::meter::host::write;
    use crate::units::MicroJoules;
    use std::cell::Cell;

    const INTERVAL: Duration = Duration::from_millis(100);

    fn names(sensors: &Sensors) -> Vec<String> {
        sensors.meters.iter().map(|meter| meter.domains()[0].name.to_string()).collect()
    }

    fn grace(root: &Path, number: u32, what: &str, microwatts: u64) {
        let device = format!("sys/class/hwmon/hwmon{number}");
        write(root, &format!("{device}/name"), "power_meter");
        write(root, &format!("{device}/device/power1_oem_info"), what);
        write(root, &format!("{device}/device/power1_average"), &microwatts.to_string());
        write(root, &format!("{device}/device/power1_average_interval"), "50");
    }

    #[test]
    fn sockets_of_amd_are_counted_and_their_cores_and_other_devices_are_not() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().to_owned();
        let device = "sys/class/hwmon/hwmon3";
        write(&path, &format!("{device}/name"), "amd_energy");
        for (n, label) in [(1, "Ecore000"), (2, "Ecore001"), (3, "Esocket0"), (4, "Esocket1")] {
            write(&path, &format!("{device}/energy{n}_label"), label);
        }
        write(&path, "sys/class/hwmon/hwmon1/name", "xe");
        write(&path, "sys/class/hwmon/hwmon1/energy1_input", "5");
        let time = Cell::new(0u64);
        let show = move || {
            for (n, rise) in [(1, 10), (2, 20), (3, 300), (4, 400)] {
                write(&path, &format!("{device}/energy{n}_input"), &(rise * time.get()).to_string());
            }
            time.set(time.get() + 1);
        };
        show();
        let sensors = open(&Host::fake(root.path(), show), INTERVAL).unwrap();
        assert_eq!(names(&sensors), ["package-0", "package-1"]);
        assert_eq!(sensors.meters[0].domains()[0].provenance, Provenance::MeasuredCounter);
    }

    #[test]
    fn the_power_of_grace_sockets_is_integrated_and_the_module_around_and_the_rails_inside_are_not() {
        let root = tempfile::tempdir().unwrap();
        grace(root.path(), 1, "Module Power Socket 0", 600_000_000);
        grace(root.path(), 2, "Grace Power Socket 1", 90_000_000);
        grace(root.path(), 3, "Grace Power Socket 0", 100_000_000);
        grace(root.path(), 4, "CPU Power Socket 0", 70_000_000);
        let host = Host::fake(root.path(), || ());
        let mut sensors = open(&host, INTERVAL).unwrap();
        assert_eq!(names(&sensors), ["package-0", "package-1"]);
        let meter = &mut sensors.meters[0];
        assert_eq!(meter.domains()[0].provenance, Provenance::IntegratedPower);
        assert_eq!(meter.update_period(), Duration::from_millis(50));
        let mut at = |ms| meter.read(Duration::from_millis(ms));
        assert_eq!(at(0).unwrap().cumulative, [MicroJoules(0)]);
        grace(root.path(), 3, "Grace Power Socket 0", 300_000_000);
        // From 100 W to 300 W in 100 ms.
        assert_eq!(at(100).unwrap().cumulative, [MicroJoules(20_000_000)]);
        // An artefact is left out and said, a pause is not bridged, an unreadable sensor is an error.
        grace(root.path(), 3, "Grace Power Socket 0", 2_500_000_000_000);
        assert_eq!(at(150).unwrap().notes[0].event, CounterEvent::Spike);
        grace(root.path(), 3, "Grace Power Socket 0", 300_000_000);
        let late = at(60_000).unwrap();
        assert_eq!(
            (late.notes[0].event, &late.cumulative[..]),
            (CounterEvent::Gap, &[MicroJoules(20_000_000)][..])
        );
        write(root.path(), "sys/class/hwmon/hwmon3/device/power1_average", "");
        assert_eq!(at(60_050).unwrap_err().kind, MeterErrorKind::Retry);
        assert_eq!(node_power_file(&host), None);
    }

    #[test]
    fn the_power_of_a_node_is_found_but_left_to_the_meter_bmc() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "sys/class/hwmon/hwmon0/name", "power_meter");
        write(root.path(), "sys/class/hwmon/hwmon0/power1_average", "345000000");
        let host = Host::fake(root.path(), || ());
        assert_eq!(open(&host, INTERVAL).err().unwrap().kind, MeterErrorKind::Gone);
        assert!(node_power_file(&host).unwrap().ends_with("hwmon0/power1_average"));
    }
}
