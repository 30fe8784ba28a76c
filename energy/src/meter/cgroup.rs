//! The control group of this process: the CPU time of everything in it, and the memory it may use.
//!
//! Source: Linux `Documentation/admin-guide/cgroup-v2.rst` (cpu.stat, memory.max) and
//! `cgroup-v1/memory.rst` (memory.limit_in_bytes).

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::host::{self, Host};

/// A version 2 group.
#[derive(Debug)]
pub(super) struct Cgroup {
    directory: PathBuf,
}

impl Cgroup {
    /// The group of this process.
    ///
    /// # Errors
    /// When the system has no version 2 groups, or shows none for this process.
    pub(super) fn of_this_process(host: &Host) -> io::Result<Self> {
        let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(|mount| host.path(mount));
        let mount = mounts.into_iter().find(|mount| mount.join("cgroup.controllers").exists());
        let mount =
            mount.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no cgroup version 2 is mounted"))?;
        let table = host.text("/proc/self/cgroup")?;
        let path = table.lines().find_map(|line| line.strip_prefix("0::"));
        let path =
            path.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no line 0:: in /proc/self/cgroup"))?;
        Ok(Cgroup { directory: within(&mount, path) })
    }

    /// CPU time, user and system, of all processes that are or were in the group.
    pub(super) fn cpu_time(&self) -> io::Result<Duration> {
        let path = self.directory.join("cpu.stat");
        let text = host::text(&path)?;
        let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
        let usage = usage.and_then(|number| number.trim().parse().ok());
        usage.map(Duration::from_micros).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{}: no usage_usec", path.display()))
        })
    }
}

/// The most memory that the groups of this process, of either version, leave to it; `None` without a limit.
pub(super) fn memory_limit_bytes(host: &Host) -> Option<u64> {
    let table = host.text("/proc/self/cgroup").ok()?;
    let limits = table.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let (mount, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            list if list.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return None,
        };
        let mount = host.path(mount);
        let directory = within(&mount, path);
        // A group may use no more than any group around it.
        let around = directory.ancestors().take_while(|directory| directory.starts_with(&mount));
        around.filter_map(|directory| host::text(&directory.join(file)).ok()?.parse().ok()).min()
    });
    limits.min()
}

/// A group's directory below its mount. A container may be shown the path on the host, of which its own mount has
/// only the end: then the mount is the group.
fn within(mount: &Path, path: &str) -> PathBuf {
    let directory = mount.join(path.trim_start_matches('/'));
    if path.contains("..") || !directory.is_dir() { mount.to_owned() } else { directory }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::host::write;

    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            write(root.path(), path, text);
        }
        let host = Host::fake(root.path(), || ());
        (root, host)
    }

    const V2: (&str, &str) = ("sys/fs/cgroup/cgroup.controllers", "cpu memory");

    #[test]
    fn the_cpu_time_of_the_group_is_read_where_the_process_is() {
        let stat = |usage| format!("usage_usec {usage}\nuser_usec 1\nsystem_usec 2");
        for (table, expect_s) in
            [("0::/job/step", 7), ("0::/", 9), ("0::/../..", 9), ("0::/kubepods/pod1", 9)]
        {
            let (_root, host) = host(&[
                V2,
                ("proc/self/cgroup", table),
                ("sys/fs/cgroup/cpu.stat", &stat("9000000")),
                ("sys/fs/cgroup/job/step/cpu.stat", &stat("7000000")),
            ]);
            let group = Cgroup::of_this_process(&host).unwrap();
            assert_eq!(group.cpu_time().unwrap(), Duration::from_secs(expect_s), "{table}");
        }
    }

    #[test]
    fn a_system_without_version_2_or_with_a_damaged_file_is_an_error() {
        let (_root, v1) = host(&[("proc/self/cgroup", "1:cpu:/")]);
        assert!(Cgroup::of_this_process(&v1).is_err());
        let (_root, damaged) =
            host(&[V2, ("proc/self/cgroup", "0::/"), ("sys/fs/cgroup/cpu.stat", "user_usec 4")]);
        let error = Cgroup::of_this_process(&damaged).unwrap().cpu_time().unwrap_err();
        assert!(error.to_string().contains("no usage_usec"), "{error}");
    }

    #[test]
    fn the_tightest_limit_around_the_process_holds() {
        for (files, expect) in [
            (
                &[
                    ("proc/self/cgroup", "0::/a/b"),
                    ("sys/fs/cgroup/a/memory.max", "500"),
                    ("sys/fs/cgroup/a/b/memory.max", "max"),
                ][..],
                Some(500),
            ),
            (&[("proc/self/cgroup", "0::/a"), ("sys/fs/cgroup/a/memory.max", "max")], None),
            (&[("proc/self/cgroup", "0::/"), ("sys/fs/cgroup/memory.max", "800")], Some(800)),
            (
                &[
                    ("proc/self/cgroup", "4:memory:/job"),
                    ("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "300"),
                    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712"),
                ],
                Some(300),
            ),
            (&[("proc/self/cgroup", "5:cpu,cpuacct:/job")], None),
            (&[], None),
        ] {
            let (_root, host) = host(files);
            assert_eq!(memory_limit_bytes(&host), expect, "{files:?}");
        }
    }
}
