//! RAPL through powercap: the energy counters of x86 packages and their memory (`/sys/class/powercap`).
//!
//! Zones nest and repeat: a package contains its cores, `psys` contains the packages, and `intel-rapl-mmio` shows
//! the same package again. Chosen are the packages, each once by name, and the `dram` beside each, which no package
//! contains; or `psys` alone, where the configuration asks for it or no package exists. Since CVE-2020-8694 the
//! counters are readable by root alone on most systems.
//!
//! Source: Linux `Documentation/power/powercap/powercap.rst`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::host::{self, Host};
use super::register::{self, Register, RegisterMeter, kind_of};
use super::trial::{Tried, try_out};
use super::{MeterError, MeterErrorKind};
use crate::config::RaplScope;

const POWERCAP: &str = "/sys/class/powercap";

const REMEDY: &str = "allow reading with `sudo chmod a+r /sys/class/powercap/*rapl*/energy_uj` until the next boot, \
     or for good to a group with `sudo groupadd -f energy; sudo usermod -aG energy $USER` and the udev rule \
     `SUBSYSTEM==\"powercap\", ACTION==\"add\", RUN+=\"/bin/chgrp energy /sys%p/energy_uj\", \
     RUN+=\"/bin/chmod g+r /sys%p/energy_uj\"`";

/// What can be counted through powercap.
pub struct Powercap {
    /// The meters, and the zones that are there and not counted.
    pub tried: Tried,
    /// Longest time between two readings in which no wrap can hide.
    pub longest_pause: Duration,
}

/// Opens the zones of `host`.
///
/// # Errors
/// `Gone` when there are no zones that count (virtual machine, other architecture); `Fatal` when they may not be
/// read.
pub fn open(host: &Host, scope: RaplScope) -> Result<Powercap, MeterError> {
    let mut longest_pause = register::longest_pause(None, register::PACKAGE);
    let mut meters = Vec::new();
    for (name, directory) in zones(host, scope)? {
        let path = directory.join("energy_uj");
        let register = Register::open_text(&path).map_err(|error| unreadable(&path, &error))?;
        if let Err(error) = register.read()
            && kind_of(&register, &error) == MeterErrorKind::Fatal
        {
            return Err(unreadable(&path, &error));
        }
        // A zone that does not tell its range is followed without wraps: a fall is then a reset.
        let range = host::text(&directory.join("max_energy_range_uj")).ok();
        let range = range.and_then(|text| text.parse().ok()).filter(|&range: &u64| range > 0);
        longest_pause = longest_pause.min(register::longest_pause(range, register::plausible(&name)));
        meters.push(RegisterMeter::new(&name, "rapl", register, range));
    }
    let tried = try_out(host, "rapl", meters)?;
    Ok(Powercap { tried, longest_pause })
}

/// Names and directories of the zones that cover the machine without covering anything twice.
///
/// # Errors
/// `Gone` when there are none.
pub(super) fn zones(host: &Host, scope: RaplScope) -> Result<Vec<(String, PathBuf)>, MeterError> {
    let root = host.path(POWERCAP);
    let chosen = choose(&root, scope).map_err(|error| unreadable(&root, &error))?;
    if chosen.is_empty() {
        let wanted = match scope {
            RaplScope::Package => "package or psys zones",
            RaplScope::Psys => "psys zone",
        };
        return Err(absent(format!("{}: no {wanted}", root.display())));
    }
    Ok(chosen)
}

fn choose(root: &Path, scope: RaplScope) -> io::Result<Vec<(String, PathBuf)>> {
    let mut packages = BTreeMap::new();
    let mut memories = BTreeMap::new();
    let mut platform = None;
    let is_zone = |name: &str| name.contains("rapl") && name.matches(':').count() == 1;
    let mut directories = host::list(root, is_zone)?;
    // Of twins the one in the processor's own registers comes first.
    directories.sort_by_key(|path| path.to_string_lossy().contains("mmio"));
    for directory in directories {
        let Ok(name) = host::text(&directory.join("name")) else { continue };
        if name.starts_with("package") {
            for child in host::list(&directory, |name| name.contains("rapl"))? {
                if host::text(&child.join("name")).is_ok_and(|name| name == "dram") {
                    let dram = name.replacen("package", "dram", 1);
                    memories.entry(dram).or_insert(child);
                }
            }
            packages.entry(name).or_insert(directory);
        } else if name == "psys" {
            platform.get_or_insert((name, directory));
        }
    }
    if packages.is_empty() || scope == RaplScope::Psys {
        return Ok(platform.into_iter().collect());
    }
    Ok(packages.into_iter().chain(memories).collect())
}

fn absent(message: String) -> MeterError {
    MeterError {
        sensor: "rapl",
        kind: MeterErrorKind::Gone,
        message,
        remedy: "RAPL needs an x86 machine, not a virtual one, with the intel_rapl_msr module loaded \
                 (`sudo modprobe intel_rapl_msr`); otherwise use energy.meter = \"model\""
            .into(),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> MeterError {
    let message = format!("{}: {error}", path.display());
    match error.kind() {
        io::ErrorKind::NotFound => absent(message),
        _ => MeterError { sensor: "rapl", kind: MeterErrorKind::Fatal, message, remedy: REMEDY.into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::host::write;
    use std::cell::Cell;
    use std::rc::Rc;

    const RANGE: &str = "262143328850";

    /// A zone, with how many microjoules it rises at each look.
    type Zone = (&'static str, &'static str, u64);

    /// A machine whose zones rise while it is watched.
    fn machine(zones: &'static [Zone]) -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().to_owned();
        let time = Rc::new(Cell::new(0));
        let show = move || {
            for (directory, name, rise) in zones {
                let zone = format!("sys/class/powercap/{directory}");
                write(&path, &format!("{zone}/name"), name);
                write(&path, &format!("{zone}/max_energy_range_uj"), RANGE);
                write(&path, &format!("{zone}/energy_uj"), &(rise * time.get()).to_string());
            }
            time.set(time.get() + 1);
        };
        show();
        let host = Host::fake(root.path(), show);
        (root, host)
    }

    fn names(powercap: &Powercap) -> Vec<&str> {
        powercap.tried.meters.iter().map(RegisterMeter::name).collect()
    }

    const SERVER: &[Zone] = &[
        ("intel-rapl-mmio:0", "package-0", 70),
        ("intel-rapl:0", "package-0", 100),
        ("intel-rapl:0/intel-rapl:0:0", "core", 60),
        ("intel-rapl:0/intel-rapl:0:1", "dram", 10),
        ("intel-rapl:0:0", "core", 60),
        ("intel-rapl:0:1", "dram", 10),
        ("intel-rapl:1", "package-1", 90),
        ("intel-rapl:2", "psys", 500),
    ];

    #[test]
    fn package_and_dram_are_counted_and_cores_uncore_psys_and_the_mmio_twin_are_not() {
        let (_root, host) = machine(SERVER);
        let powercap = open(&host, RaplScope::Package).unwrap();
        assert_eq!(names(&powercap), ["package-0", "package-1", "dram-0"]);
        let path = powercap.tried.meters[0].register().name();
        assert!(path.ends_with("intel-rapl:0/energy_uj"), "{path}");
        assert_eq!(powercap.tried.left_out, []);
        // 262 kJ at 1 kW last 262 s, so a minute is short enough.
        assert_eq!(powercap.longest_pause, Duration::from_secs(60));
    }

    #[test]
    fn psys_is_counted_alone_when_asked_for_or_when_no_package_exists() {
        let (_root, host) = machine(SERVER);
        assert_eq!(names(&open(&host, RaplScope::Psys).unwrap()), ["psys"]);
        let (_root, host) = machine(&[("intel-rapl:0", "psys", 1)]);
        assert_eq!(names(&open(&host, RaplScope::Package).unwrap()), ["psys"]);
        let (_root, host) = machine(&[("intel-rapl:0", "package-0", 1)]);
        let error = open(&host, RaplScope::Psys).err().unwrap();
        assert!(error.message.contains("no psys zone"), "{error}");
    }

    #[test]
    fn a_machine_with_the_mmio_zone_alone_is_counted_through_it() {
        let (_root, host) = machine(&[("intel-rapl-mmio:0", "package-0", 70)]);
        assert_eq!(names(&open(&host, RaplScope::Package).unwrap()), ["package-0"]);
    }

    #[test]
    fn dies_that_mirror_one_counter_are_counted_once_and_it_is_said() {
        let (_root, host) = machine(&[
            ("intel-rapl:0", "package-0-die-0", 100),
            ("intel-rapl:1", "package-0-die-1", 100),
            ("intel-rapl:2", "package-1-die-0", 101),
        ]);
        let powercap = open(&host, RaplScope::Package).unwrap();
        assert_eq!(names(&powercap), ["package-0-die-0", "package-1-die-0"]);
        let said = powercap.tried.left_out[0].to_string();
        assert!(said.contains("package-0-die-1 shows the same counter as package-0-die-0"), "{said}");
    }

    #[test]
    fn a_zone_that_stands_still_is_left_out_and_said_and_the_others_are_counted() {
        let (_root, host) =
            machine(&[("intel-rapl:0", "package-0", 9), ("intel-rapl:0/intel-rapl:0:0", "dram", 0)]);
        let powercap = open(&host, RaplScope::Package).unwrap();
        assert_eq!(names(&powercap), ["package-0"]);
        assert!(powercap.tried.left_out[0].message.contains("stands still at 0 uJ"));
    }

    #[test]
    fn a_machine_whose_only_counter_is_dead_has_no_counter() {
        let (_root, host) = machine(&[("intel-rapl:0", "package-0", 0)]);
        assert_eq!(open(&host, RaplScope::Package).err().unwrap().kind, MeterErrorKind::Gone);
    }

    #[test]
    fn a_machine_without_zones_is_told_apart_from_a_forbidden_one() {
        let (_root, host) = machine(&[]);
        let error = open(&host, RaplScope::Package).err().unwrap();
        assert_eq!(error.kind, MeterErrorKind::Gone);
        assert!(error.to_string().contains("intel_rapl_msr"), "{error}");

        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = unreadable(Path::new("/sys/class/powercap/intel-rapl:0/energy_uj"), &denied);
        assert_eq!(error.kind, MeterErrorKind::Fatal);
        assert!(error.to_string().contains("udev rule") && error.to_string().contains("group"), "{error}");
    }
}
