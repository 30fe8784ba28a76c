//! RAPL through perf events: the counters of `/sys/bus/event_source/devices/power`, one event for each package.
//!
//! The kernel extends them to 64 bits, so they do not wrap, and a reading costs least of all ways to RAPL. Only
//! `energy-pkg` and `energy-ram` are counted, or `energy-psys` alone: cores and the integrated GPU are inside the
//! package, as are the events of the device `power_core`.
//!
//! Sources: Linux `arch/x86/events/rapl.c`, `perf_event_open(2)`,
//! `Documentation/admin-guide/sysctl/kernel.rst` (perf_event_paranoid).

mod event;

use std::collections::BTreeSet;
use std::io;

pub use event::PerfEvent;
pub(super) use event::open_event;

use super::host::Host;
use super::register::{Register, RegisterMeter};
use super::trial::{Tried, try_out};
use super::{MeterError, MeterErrorKind};
use crate::config::RaplScope;

const DEVICE: &str = "/sys/bus/event_source/devices/power";

/// An event as sysfs describes it.
#[derive(Clone, Debug, PartialEq)]
struct Described {
    event: PerfEvent,
    /// Joules for each count.
    scale: f64,
}

/// Opens the energy events of `host`: of all domains, or of those among `only`.
///
/// # Errors
/// `Gone` when there are no events that count (virtual machine, other architecture); `Fatal` when they may not be
/// opened.
pub fn open(host: &Host, scope: RaplScope, only: Option<&[String]>) -> Result<Tried, MeterError> {
    let cpus = host.text(&format!("{DEVICE}/cpumask")).ok();
    let Some(cpus) = cpus.as_deref().and_then(cpu_list).filter(|cpus| !cpus.is_empty()) else {
        return Err(absent(format!("{DEVICE}: no such device")));
    };
    let mut meters = Vec::new();
    for (kind, stem) in chosen_events(host, scope)? {
        let described = describe(host, kind)?;
        // The whole platform is one, whichever CPU is asked.
        let asked = if stem == "psys" { &cpus[..1] } else { &cpus[..] };
        for &cpu in asked {
            let name = if stem == "psys" { stem.to_owned() } else { domain_name(host, stem, cpu, &cpus) };
            if only.is_some_and(|only| !only.contains(&name)) {
                continue;
            }
            let file = host.open_event(&described.event, cpu).map_err(|error| refused(host, kind, &error))?;
            let register =
                Register::Event { file, name: format!("{kind} of CPU {cpu}"), scale: described.scale };
            meters.push(RegisterMeter::new(&name, "perf", register, None));
        }
    }
    if meters.is_empty() {
        let other = only.unwrap_or_default().join(", ");
        return Err(absent(format!("{DEVICE}: none of its domains is among those of powercap ({other})")));
    }
    try_out(host, "perf", meters)
}

/// The events to count, with the beginnings of their domains' names.
fn chosen_events(host: &Host, scope: RaplScope) -> Result<Vec<(&'static str, &'static str)>, MeterError> {
    let has = |event: &str| host.path(&format!("{DEVICE}/events/{event}")).exists();
    let package = scope == RaplScope::Package && has("energy-pkg");
    let candidates: &[_] = if package {
        &[("energy-pkg", "package"), ("energy-ram", "dram")]
    } else {
        &[("energy-psys", "psys")]
    };
    let events: Vec<_> = candidates.iter().copied().filter(|(event, _)| has(event)).collect();
    if events.is_empty() {
        return Err(absent(format!("{DEVICE}/events: no energy-pkg or energy-psys")));
    }
    Ok(events)
}

fn describe(host: &Host, kind: &str) -> Result<Described, MeterError> {
    let read = |name: &str| {
        let path = format!("{DEVICE}/{name}");
        host.text(&path).map_err(|error| unintelligible(&path, &error.to_string()))
    };
    let number = read("type")?.parse().ok();
    let config = read(&format!("events/{kind}"))?;
    let config = config.strip_prefix("event=0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
    let scale = read(&format!("events/{kind}.scale"))?.parse().ok();
    let unit = read(&format!("events/{kind}.unit"))?;
    match (number, config, scale.filter(|scale: &f64| scale.is_finite() && *scale > 0.0)) {
        (Some(number), Some(config), Some(scale)) if unit == "Joules" => {
            Ok(Described { event: PerfEvent { kind: number, config }, scale })
        }
        _ => Err(unintelligible(
            &format!("{DEVICE}/events/{kind}"),
            "expected a device number, event=0x.., a scale above 0 and the unit Joules",
        )),
    }
}

/// `package-1`, or `package-1-die-0` where a package has several, as powercap names its zones.
fn domain_name(host: &Host, stem: &str, cpu: u32, cpus: &[u32]) -> String {
    let topology = |cpu: u32, key: &str| {
        let text = host.text(&format!("/sys/devices/system/cpu/cpu{cpu}/topology/{key}"));
        text.ok().and_then(|text| text.parse::<u32>().ok())
    };
    let package = |cpu| topology(cpu, "physical_package_id").unwrap_or(0);
    let alone = cpus.iter().filter(|&&other| package(other) == package(cpu)).count() == 1;
    match topology(cpu, "die_id") {
        Some(die) if !alone => format!("{stem}-{}-die-{die}", package(cpu)),
        _ => format!("{stem}-{}", package(cpu)),
    }
}

/// The CPUs of a list such as `0,18-19`.
fn cpu_list(text: &str) -> Option<Vec<u32>> {
    let mut cpus = BTreeSet::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        // No machine has more: a damaged list must not fill the memory.
        if last < first || last - first > 65_536 {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus.into_iter().collect())
}

fn absent(message: String) -> MeterError {
    MeterError {
        sensor: "perf",
        kind: MeterErrorKind::Gone,
        message,
        remedy: "RAPL events need an x86 machine, not a virtual one, with the module rapl loaded \
                 (`sudo modprobe rapl`); otherwise use energy.meter = \"rapl\" or \"model\""
            .into(),
    }
}

fn unintelligible(path: &str, what: &str) -> MeterError {
    MeterError {
        sensor: "perf",
        kind: MeterErrorKind::Fatal,
        message: format!("{path}: {what}"),
        remedy: "use energy.meter = \"rapl\" or \"model\"".into(),
    }
}

fn refused(host: &Host, kind: &str, error: &io::Error) -> MeterError {
    let message = format!("perf_event_open of {kind}: {error}");
    if error.kind() != io::ErrorKind::PermissionDenied {
        return absent(message);
    }
    let paranoid = host.text("/proc/sys/kernel/perf_event_paranoid").unwrap_or_else(|_| "unknown".into());
    let container =
        if host.is_container() { "; in a container, start it with --cap-add PERFMON" } else { "" };
    let capability = match paranoid.parse::<i32>() {
        // Debian and Ubuntu know levels above 2, which no capability but CAP_SYS_ADMIN opens.
        Ok(level) if level > 2 => "CAP_PERFMON is not enough at this level",
        _ => "or give the program CAP_PERFMON with `sudo setcap cap_perfmon+ep PROGRAM` (Linux 5.8 or later)",
    };
    MeterError {
        sensor: "perf",
        kind: MeterErrorKind::Fatal,
        message: format!("{message}; kernel.perf_event_paranoid is {paranoid}"),
        remedy: format!(
            "allow it with `sudo sysctl kernel.perf_event_paranoid=0` until the next boot; {capability}{container}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::Meter;
    use crate::meter::host::write;
    use std::fs::File;
    use std::io::Write;
    use std::time::Duration;

    /// 2^-32 J, as on every x86.
    const SCALE: &str = "2.3283064365386962890625e-10";
    const JOULE: u64 = 1 << 32;

    fn device(events: &[(&str, &str)], cpumask: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let device = &DEVICE[1..];
        write(root.path(), &format!("{device}/type"), "9");
        write(root.path(), &format!("{device}/cpumask"), cpumask);
        for (event, config) in events {
            write(root.path(), &format!("{device}/events/{event}"), config);
            write(root.path(), &format!("{device}/events/{event}.scale"), SCALE);
            write(root.path(), &format!("{device}/events/{event}.unit"), "Joules");
        }
        for cpu in cpu_list(cpumask).unwrap() {
            let topology = format!("sys/devices/system/cpu/cpu{cpu}/topology");
            write(root.path(), &format!("{topology}/physical_package_id"), &(cpu / 16).to_string());
            write(root.path(), &format!("{topology}/die_id"), &(cpu / 8 % 2).to_string());
        }
        root
    }

    const EVENTS: &[(&str, &str)] = &[
        ("energy-cores", "event=0x01"),
        ("energy-pkg", "event=0x02"),
        ("energy-ram", "event=0x03"),
        ("energy-gpu", "event=0x04"),
        ("energy-psys", "event=0x05"),
    ];

    /// An open event that shows these counts, one at each reading, as a perf event does: at the cursor.
    fn counts(counts: impl IntoIterator<Item = u64>) -> File {
        let mut file = tempfile::tempfile().unwrap();
        for count in counts {
            file.write_all(&count.to_ne_bytes()).unwrap();
        }
        std::io::Seek::rewind(&mut file).unwrap();
        file
    }

    /// A host whose events rise by a joule and something of their own.
    fn host(root: &tempfile::TempDir) -> Host {
        let rising = |event: &PerfEvent, cpu: u32| {
            let rise = JOULE + event.config * 100_000 + u64::from(cpu) * 10_000;
            Ok(counts((1..200).map(|n| n * rise)))
        };
        Host::fake(root.path(), || ()).with_events(rising)
    }

    fn names(tried: &Tried) -> Vec<&str> {
        tried.meters.iter().map(RegisterMeter::name).collect()
    }

    #[test]
    fn packages_and_their_memory_are_counted_and_what_is_inside_or_around_them_is_not() {
        let root = device(EVENTS, "0,16");
        let tried = open(&host(&root), RaplScope::Package, None).unwrap();
        assert_eq!(names(&tried), ["package-0", "package-1", "dram-0", "dram-1"]);
        assert_eq!(names(&open(&host(&root), RaplScope::Psys, None).unwrap()), ["psys"]);
    }

    #[test]
    fn only_domains_that_powercap_has_too_are_counted() {
        let root = device(EVENTS, "0,16");
        let powercap = ["package-0", "package-1"].map(String::from);
        let tried = open(&host(&root), RaplScope::Package, Some(&powercap)).unwrap();
        assert_eq!(names(&tried), ["package-0", "package-1"]);
        let error = open(&host(&root), RaplScope::Package, Some(&["psys".into()])).err().unwrap();
        assert_eq!(error.kind, MeterErrorKind::Gone);
        assert!(error.message.contains("psys"), "{error}");
    }

    #[test]
    fn a_count_is_scaled_to_microjoules_and_read_at_the_cursor() {
        let root = device(&[("energy-pkg", "event=0x02")], "0");
        let host = Host::fake(root.path(), || ())
            .with_events(|_, _| Ok(counts([0, JOULE, JOULE * 2, JOULE * 4, JOULE * 4 + JOULE / 2])));
        let mut tried = open(&host, RaplScope::Package, None).unwrap();
        // The trial took the first two counts.
        let mut read = |s| tried.meters[0].read(Duration::from_secs(s)).unwrap().cumulative[0].0;
        assert_eq!([read(0), read(1), read(2)], [0, 2_000_000, 2_500_000]);
    }

    #[test]
    fn dies_that_mirror_one_counter_are_counted_once() {
        let root = device(&[("energy-pkg", "event=0x02")], "0,8,16");
        // Each event counts from its own opening.
        let by_package = |_: &PerfEvent, cpu: u32| {
            let start = u64::from(cpu) * 12_345_678;
            Ok(counts((1..200).map(move |n| start + n * (JOULE + u64::from(cpu / 16) * 50_000))))
        };
        let host = Host::fake(root.path(), || ()).with_events(by_package);
        let tried = open(&host, RaplScope::Package, None).unwrap();
        assert_eq!(names(&tried), ["package-0-die-0", "package-1"]);
        assert!(tried.left_out[0].message.contains("package-0-die-1 shows the same counter"));
    }

    #[test]
    fn an_event_that_stays_at_zero_is_no_counter() {
        // As in virtual machines whose host shows the device and drives nothing.
        let root = device(&[("energy-psys", "event=0x05")], "0");
        let host = Host::fake(root.path(), || ()).with_events(|_, _| Ok(counts([0; 200])));
        let error = open(&host, RaplScope::Package, None).err().unwrap();
        assert_eq!(error.kind, MeterErrorKind::Gone);
        assert!(error.message.contains("psys") && error.message.contains("still at 0 uJ"), "{error}");
    }

    #[test]
    fn an_event_that_ends_is_a_processor_that_left_and_the_others_go_on() {
        let root = device(&[("energy-pkg", "event=0x02")], "0,16");
        let two = |_: &PerfEvent, cpu: u32| {
            let length = if cpu == 0 { 8 } else { 200 };
            Ok(counts((1..length).map(|n| n * (JOULE + u64::from(cpu) * 10_000))))
        };
        let host = Host::fake(root.path(), || ()).with_events(two);
        let mut tried = open(&host, RaplScope::Package, None).unwrap();
        let mut last = Ok(());
        for ms in 0..10 {
            last = tried.meters[0].read(Duration::from_millis(ms)).map(drop);
        }
        assert_eq!(last.unwrap_err().kind, MeterErrorKind::Gone);
        assert!(tried.meters[1].read(Duration::from_secs(1)).is_ok());
    }

    #[test]
    fn a_refusal_names_the_level_and_what_to_do() {
        for (level, expect) in [("2", "setcap cap_perfmon"), ("4", "not enough")] {
            let root = device(EVENTS, "0");
            write(root.path(), "proc/sys/kernel/perf_event_paranoid", level);
            let error = open(&Host::fake(root.path(), || ()), RaplScope::Package, None).err().unwrap();
            assert_eq!(error.kind, MeterErrorKind::Fatal);
            assert!(error.message.contains(&format!("perf_event_paranoid is {level}")), "{error}");
            assert!(error.remedy.contains(expect), "{error}");
        }
    }

    #[test]
    fn an_event_in_another_unit_or_form_is_refused() {
        for (file, text) in [
            ("events/energy-pkg.unit", "Watts"),
            ("events/energy-pkg.scale", "0"),
            ("events/energy-pkg.scale", "one"),
            ("events/energy-pkg", "event=0x02,umask=0x1"),
            ("type", ""),
        ] {
            let root = device(EVENTS, "0");
            write(root.path(), &format!("{}/{file}", &DEVICE[1..]), text);
            let error = open(&host(&root), RaplScope::Package, None).err().unwrap();
            assert_eq!(error.kind, MeterErrorKind::Fatal, "{file}: {text}");
        }
    }

    #[test]
    fn lists_of_cpus_are_read_and_damaged_ones_refused() {
        for (text, expect) in [
            ("0", Some(vec![0])),
            ("0,18", Some(vec![0, 18])),
            ("0-2,8", Some(vec![0, 1, 2, 8])),
            ("", Some(vec![])),
            ("2-0", None),
            ("0-4000000000", None),
            ("a", None),
        ] {
            assert_eq!(cpu_list(text), expect, "{text:?}");
        }
    }
}
