//! The machine as the meters see it: its files, its perf events, and whether it is a real one.
//!
//! Everything that is read through a path is read below one root, so that a tree of files in a temporary directory
//! can stand for any machine.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::perf::{self, PerfEvent};

/// Where the meters look.
pub struct Host {
    root: PathBuf,
    open_event: OpenEvent,
    pause: Box<dyn Fn()>,
}

/// Opens a perf event on a CPU.
pub(super) type OpenEvent = Box<dyn Fn(&PerfEvent, u32) -> io::Result<File>>;

/// Time between two readings of a trial: several updates of a counter that is alive.
const TRIAL_PAUSE: Duration = Duration::from_millis(5);

impl Host {
    /// This machine.
    pub fn this() -> Self {
        Host {
            root: "/".into(),
            open_event: Box::new(perf::open_event),
            pause: Box::new(|| std::thread::sleep(TRIAL_PAUSE)),
        }
    }

    /// The place of an absolute path on this host.
    pub(super) fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    /// A small file without the white space around it.
    pub(super) fn text(&self, absolute: &str) -> io::Result<String> {
        text(&self.path(absolute))
    }

    pub(super) fn open_event(&self, event: &PerfEvent, cpu: u32) -> io::Result<File> {
        (self.open_event)(event, cpu)
    }

    pub(super) fn pause(&self) {
        (self.pause)();
    }

    /// The virtual machine or container this is, in words; `None` on bare metal.
    pub fn confinement(&self) -> Option<String> {
        let machine = self.is_virtual().then(|| {
            let dmi = ["sys_vendor", "product_name"]
                .map(|key| self.text(&format!("/sys/class/dmi/id/{key}")).unwrap_or_default());
            match dmi.join(" ").trim() {
                "" => "a virtual machine".to_owned(),
                name => format!("a virtual machine ({name})"),
            }
        });
        let container = self.is_container().then(|| "a container".to_owned());
        match (machine, container) {
            (Some(machine), Some(container)) => Some(format!("{container} in {machine}")),
            (machine, container) => machine.or(container),
        }
    }

    /// True in a virtual machine: the processor says so, or its firmware is one that only hypervisors have.
    pub fn is_virtual(&self) -> bool {
        /// Names that hypervisors put into DMI, for processors without a flag for it (Arm).
        const VIRTUAL_PRODUCTS: [&str; 8] = [
            "KVM",
            "QEMU",
            "VMware",
            "VirtualBox",
            "Virtual Machine",
            "Google Compute Engine",
            "Xen",
            "Firecracker",
        ];
        let cpuinfo = self.text("/proc/cpuinfo").unwrap_or_default();
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
        let product = self.text("/sys/class/dmi/id/product_name").unwrap_or_default();
        flags.split_ascii_whitespace().any(|flag| flag == "hypervisor")
            || VIRTUAL_PRODUCTS.iter().any(|name| product.contains(name))
    }

    /// True inside Docker, Podman or a pod, by the marks that they leave.
    pub fn is_container(&self) -> bool {
        ["/.dockerenv", "/run/.containerenv", "/var/run/secrets/kubernetes.io"]
            .iter()
            .any(|mark| self.path(mark).exists())
    }
}

/// A small file without the white space around it.
pub(super) fn text(path: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim().to_owned())
}

/// Directories and files in `directory` whose names are wanted, in the order of their names with numbers as numbers.
pub(super) fn list(directory: &Path, wanted: impl Fn(&str) -> bool) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if wanted(&name) {
            found.push((number_in(&name), name, entry.path()));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, _, path)| path).collect())
}

/// The first number in a name: 10 in `hwmon10`.
pub(super) fn number_in(name: &str) -> Option<u32> {
    let digits = name.trim_start_matches(|c: char| !c.is_ascii_digit());
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

#[cfg(test)]
impl Host {
    /// A machine made of files below `root`, that has no perf events. `pause` is called where a real machine's
    /// counters are given time to move.
    pub(super) fn fake(root: &Path, pause: impl Fn() + 'static) -> Self {
        let open_event =
            Box::new(|_: &PerfEvent, _: u32| Err(io::Error::from(io::ErrorKind::PermissionDenied)));
        Host { root: root.into(), open_event, pause: Box::new(pause) }
    }

    /// The same host with other perf events.
    pub(super) fn with_events(
        mut self,
        open_event: impl Fn(&PerfEvent, u32) -> io::Result<File> + 'static,
    ) -> Self {
        self.open_event = Box::new(open_event);
        self
    }
}

/// Writes a file of a fake machine, with its directories.
#[cfg(test)]
pub(super) fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let text = format!("{text}\n");
    // Not truncated first: some file systems then write a file through to the disk each time it is closed.
    let mut file = File::options().create(true).truncate(false).write(true).open(path).unwrap();
    io::Write::write_all(&mut file, text.as_bytes()).unwrap();
    file.set_len(text.len() as u64).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn confinement(files: &[(&str, &str)]) -> Option<String> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            write(root.path(), path, text);
        }
        Host::fake(root.path(), || ()).confinement()
    }

    #[test]
    fn virtual_machines_and_containers_are_told_from_bare_metal() {
        const CLOUD: (&str, &str) = ("proc/cpuinfo", "processor : 0\nflags\t\t: fpu sse hypervisor avx");
        const METAL: (&str, &str) = ("proc/cpuinfo", "processor : 0\nflags\t\t: fpu sse avx");
        let vendor = ("sys/class/dmi/id/sys_vendor", "Amazon EC2");
        let product = ("sys/class/dmi/id/product_name", "m5.large");
        for (files, expect) in [
            (&[METAL][..], None),
            (&[CLOUD], Some("a virtual machine")),
            (&[CLOUD, vendor, product], Some("a virtual machine (Amazon EC2 m5.large)")),
            (&[METAL, vendor], None),
            (
                &[("sys/class/dmi/id/product_name", "KVM Virtual Machine")],
                Some("a virtual machine (KVM Virtual Machine)"),
            ),
            (&[METAL, (".dockerenv", "")], Some("a container")),
            (&[CLOUD, ("run/.containerenv", "")], Some("a container in a virtual machine")),
        ] {
            assert_eq!(confinement(files).as_deref(), expect, "{files:?}");
        }
    }

    #[test]
    fn names_are_listed_by_their_numbers() {
        let root = tempfile::tempdir().unwrap();
        for name in ["hwmon10", "hwmon2", "hwmon1", "other3"] {
            write(root.path(), &format!("{name}/name"), "x");
        }
        let listed = list(root.path(), |name| name.starts_with("hwmon")).unwrap();
        let names: Vec<_> = listed.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["hwmon1", "hwmon2", "hwmon10"]);
    }
}
