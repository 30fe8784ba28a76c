//! RAPL through powercap: the energy counters of x86 packages and their memory (`/sys/class/powercap`).
//!
//! Zones nest and repeat: a package contains its cores, `psys` contains the packages, and `intel-rapl-mmio` shows
//! the same package again. Chosen are the packages, each once by name, and the `dram` beside each; `psys` only
//! where no package exists. Since CVE-2020-8694 the counters are readable by root alone on most systems.
//!
//! Source: Linux `Documentation/power/powercap/powercap.rst`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::counter::CounterTracker;
use super::{Domain, Meter, MeterError, MeterErrorKind, Note, Plausible, Provenance, Reading};
use crate::units::Watts;

/// Where Linux shows the counters.
pub const POWERCAP_ROOT: &str = "/sys/class/powercap";

const REMEDY: &str = "allow reading with `sudo chmod a+r /sys/class/powercap/*rapl*/energy_uj` until the next boot, \
     or for good with the udev rule `SUBSYSTEM==\"powercap\", ACTION==\"add\", \
     RUN+=\"/bin/chmod a+r /sys%p/energy_uj\"`";

/// No package sold draws this much for longer than a counter update.
const PACKAGE: Plausible = Plausible { max_watts: Watts(1000.0), update_slack: Duration::from_millis(50) };
const DRAM: Plausible = Plausible { max_watts: Watts(300.0), update_slack: Duration::from_millis(50) };

/// Counters of all packages and their memory.
#[derive(Debug)]
pub struct RaplMeter {
    domains: Vec<Domain>,
    zones: Vec<Zone>,
}

#[derive(Debug)]
struct Zone {
    path: PathBuf,
    /// Kept open: a reading is one `pread`.
    counter: File,
    tracker: CounterTracker,
}

impl RaplMeter {
    /// Opens the zones under `root`, usually [`POWERCAP_ROOT`].
    ///
    /// # Errors
    /// `Gone` when there are no zones (virtual machine, other architecture); `Fatal` when they may not be read.
    pub fn open(root: &Path) -> Result<Self, MeterError> {
        let chosen = choose_zones(root).map_err(|error| {
            let message = format!("{}: {error}", root.display());
            match error.kind() {
                io::ErrorKind::NotFound => absent(message),
                _ => forbidden(message),
            }
        })?;
        if chosen.is_empty() {
            return Err(absent(format!("{}: no package zones", root.display())));
        }
        let mut meter = RaplMeter { domains: Vec::new(), zones: Vec::new() };
        for (name, directory) in chosen {
            let plausible = if name.starts_with("dram") { DRAM } else { PACKAGE };
            meter.zones.push(Zone::open(&directory, plausible)?);
            meter.domains.push(Domain {
                name: name.into(),
                sensor: "rapl",
                provenance: Provenance::MeasuredCounter,
            });
        }
        Ok(meter)
    }
}

impl Meter for RaplMeter {
    fn domains(&self) -> &[Domain] {
        &self.domains
    }

    fn update_period(&self) -> Duration {
        // The registers update about every millisecond: fresh beside any window worth measuring.
        Duration::ZERO
    }

    fn read(&mut self, now: Duration) -> Result<Reading, MeterError> {
        let raw = self.zones.iter().map(Zone::read).collect::<Result<Vec<u64>, _>>()?;
        let mut reading = Reading::default();
        for (domain, (zone, raw)) in self.zones.iter_mut().zip(raw).enumerate() {
            if let Some((event, span)) = zone.tracker.advance(now, raw) {
                reading.notes.push(Note { domain, event, span });
            }
            reading.cumulative.push(zone.tracker.cumulative());
        }
        Ok(reading)
    }
}

impl Zone {
    fn open(directory: &Path, plausible: Plausible) -> Result<Self, MeterError> {
        let path = directory.join("energy_uj");
        let counter = File::open(&path).map_err(|error| unreadable(&path, &error, MeterErrorKind::Fatal))?;
        // A zone that does not tell its range is followed without wraps: a fall is then a reset.
        let range = std::fs::read_to_string(directory.join("max_energy_range_uj"))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .filter(|&range: &u64| range > 0);
        let zone = Zone { path, counter, tracker: CounterTracker::new(range, plausible) };
        zone.read()?;
        Ok(zone)
    }

    fn read(&self) -> Result<u64, MeterError> {
        let mut text = [0u8; 32];
        let length = self
            .counter
            .read_at(&mut text, 0)
            .map_err(|error| unreadable(&self.path, &error, MeterErrorKind::Retry))?;
        std::str::from_utf8(&text[..length]).ok().and_then(|text| text.trim().parse().ok()).ok_or_else(|| {
            let error = io::Error::new(io::ErrorKind::InvalidData, "not a whole number");
            unreadable(&self.path, &error, MeterErrorKind::Retry)
        })
    }
}

/// Names and directories of the zones that cover the machine without covering anything twice.
fn choose_zones(root: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut packages = BTreeMap::new();
    let mut memories = BTreeMap::new();
    let mut platform = None;
    // Sorted, so that `intel-rapl:0` comes before its twin `intel-rapl-mmio:0`: ':' sorts after '-', hence the key.
    let mut directories = list(root, |name| name.contains("rapl") && name.matches(':').count() == 1)?;
    directories.sort_by_key(|path| (path.to_string_lossy().contains("mmio"), path.clone()));
    for directory in directories {
        let name = zone_name(&directory)?;
        if name.starts_with("package") {
            for child in list(&directory, |name| name.contains("rapl"))? {
                if zone_name(&child)? == "dram" {
                    let dram = name.replacen("package", "dram", 1);
                    memories.entry(dram).or_insert(child);
                }
            }
            packages.entry(name).or_insert(directory);
        } else if name == "psys" {
            platform.get_or_insert((name, directory));
        }
    }
    if packages.is_empty() {
        return Ok(platform.into_iter().collect());
    }
    Ok(packages.into_iter().chain(memories).collect())
}

fn list(directory: &Path, wanted: impl Fn(&str) -> bool) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if wanted(&entry.file_name().to_string_lossy()) && path.join("name").is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn zone_name(directory: &Path) -> io::Result<String> {
    Ok(std::fs::read_to_string(directory.join("name"))?.trim().to_owned())
}

fn absent(message: String) -> MeterError {
    MeterError {
        sensor: "rapl",
        kind: MeterErrorKind::Gone,
        message,
        remedy: "RAPL needs an x86 machine, not a virtual one, with the intel_rapl_msr module loaded; \
                 otherwise use energy.meter = \"model\""
            .into(),
    }
}

fn forbidden(message: String) -> MeterError {
    MeterError { sensor: "rapl", kind: MeterErrorKind::Fatal, message, remedy: REMEDY.into() }
}

fn unreadable(path: &Path, error: &io::Error, kind: MeterErrorKind) -> MeterError {
    let message = format!("{}: {error}", path.display());
    match (error.kind(), kind) {
        (io::ErrorKind::PermissionDenied, _) => forbidden(message),
        (io::ErrorKind::NotFound, _) => absent(message),
        (_, kind) => MeterError {
            sensor: "rapl",
            kind,
            message,
            remedy: "the span is recorded as a gap until the counter can be read again".into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::CounterEvent;
    use crate::units::MicroJoules;
    use std::fs;

    const RANGE: u64 = 262_143_328_850;

    fn zone(root: &Path, directory: &str, name: &str, energy_uj: u64) {
        let directory = root.join(directory);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("name"), format!("{name}\n")).unwrap();
        fs::write(directory.join("max_energy_range_uj"), format!("{RANGE}\n")).unwrap();
        set(&directory, energy_uj);
    }

    fn set(directory: &Path, energy_uj: u64) {
        fs::write(directory.join("energy_uj"), format!("{energy_uj}\n")).unwrap();
    }

    fn names(meter: &RaplMeter) -> Vec<&str> {
        meter.domains().iter().map(|domain| domain.name.as_ref()).collect()
    }

    #[test]
    fn package_and_dram_are_counted_and_cores_uncore_psys_and_the_mmio_twin_are_not() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        zone(root, "intel-rapl-mmio:0", "package-0", 70);
        zone(root, "intel-rapl:0", "package-0", 100);
        zone(root, "intel-rapl:0/intel-rapl:0:0", "core", 60);
        zone(root, "intel-rapl:0/intel-rapl:0:1", "dram", 10);
        zone(root, "intel-rapl:0:0", "core", 60);
        zone(root, "intel-rapl:0:1", "dram", 10);
        zone(root, "intel-rapl:1", "package-1", 100);
        zone(root, "intel-rapl:2", "psys", 500);
        let mut meter = RaplMeter::open(root).unwrap();
        assert_eq!(names(&meter), ["package-0", "package-1", "dram-0"]);
        meter.read(Duration::ZERO).unwrap();

        set(&root.join("intel-rapl:0"), 1_000_100);
        set(&root.join("intel-rapl:0/intel-rapl:0:1"), 200_010);
        set(&root.join("intel-rapl-mmio:0"), 1_000_070);
        let reading = meter.read(Duration::from_secs(1)).unwrap();
        assert_eq!(reading.cumulative, [1_000_000, 0, 200_000].map(MicroJoules));
    }

    #[test]
    fn psys_stands_in_only_where_no_package_exists() {
        let root = tempfile::tempdir().unwrap();
        zone(root.path(), "intel-rapl:0", "psys", 1);
        assert_eq!(names(&RaplMeter::open(root.path()).unwrap()), ["psys"]);
    }

    #[test]
    fn a_wrap_is_counted_through_and_a_reset_is_noted() {
        let root = tempfile::tempdir().unwrap();
        zone(root.path(), "intel-rapl:0", "package-0", RANGE - 999);
        let package = root.path().join("intel-rapl:0");
        let mut meter = RaplMeter::open(root.path()).unwrap();
        meter.read(Duration::ZERO).unwrap();
        set(&package, 4_000_000);
        let reading = meter.read(Duration::from_secs(1)).unwrap();
        assert_eq!(reading.cumulative, [MicroJoules(4_001_000)]);
        assert_eq!(reading.notes[0].event, CounterEvent::Wrap);

        set(&package, 0);
        let reading = meter.read(Duration::from_secs(2)).unwrap();
        assert_eq!(reading.cumulative, [MicroJoules(4_001_000)]);
        assert_eq!(reading.notes[0].event, CounterEvent::Reset);
        assert_eq!(reading.notes[0].span, Duration::from_secs(1));
    }

    #[test]
    fn an_unreadable_counter_is_an_error_and_loses_nothing_once_it_reads_again() {
        let root = tempfile::tempdir().unwrap();
        zone(root.path(), "intel-rapl:0", "package-0", 0);
        let package = root.path().join("intel-rapl:0");
        let mut meter = RaplMeter::open(root.path()).unwrap();
        meter.read(Duration::ZERO).unwrap();
        fs::write(package.join("energy_uj"), "").unwrap();
        let error = meter.read(Duration::from_secs(1)).unwrap_err();
        assert_eq!(error.kind, MeterErrorKind::Retry);
        set(&package, 50_000_000);
        let reading = meter.read(Duration::from_secs(2)).unwrap();
        assert_eq!(reading.cumulative, [MicroJoules(50_000_000)]);
    }

    #[test]
    fn a_machine_without_zones_is_told_apart_from_a_forbidden_one() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(RaplMeter::open(root.path()).unwrap_err().kind, MeterErrorKind::Gone);
        assert_eq!(RaplMeter::open(&root.path().join("none")).unwrap_err().kind, MeterErrorKind::Gone);

        let path = root.path().join("intel-rapl:0/energy_uj");
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = unreadable(&path, &denied, MeterErrorKind::Retry);
        assert_eq!(error.kind, MeterErrorKind::Fatal);
        assert!(error.to_string().contains("udev rule"), "{error}");
    }
}
