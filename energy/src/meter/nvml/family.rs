//! Which of the processes on a board are this one and its descendants.
//!
//! NVML numbers processes as the machine's first PID namespace does. In a container that has one of its own those
//! numbers mean nothing, not even this process's.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// The inode of the machine's first PID namespace, fixed in Linux (`PROC_PID_INIT_INO` in include/linux/proc_ns.h).
const FIRST_NAMESPACE: u64 = 0xEFFF_FFFC;

/// No tree of processes is deeper; it ends a walk among numbers that change hands meanwhile.
const DEEPEST: usize = 64;

/// This process and its descendants.
#[derive(Clone, Debug)]
pub(super) struct Family {
    /// Where procfs is.
    pub(super) proc: PathBuf,
    /// This process.
    pub(super) pid: u32,
    /// NVML and this process number processes differently.
    pub(super) hidden: bool,
}

impl Family {
    /// That of the running process.
    pub(super) fn this() -> Self {
        let namespace = fs::metadata("/proc/self/ns/pid").map(|namespace| namespace.ino());
        Family {
            proc: "/proc".into(),
            pid: std::process::id(),
            hidden: !namespace.is_ok_and(|inode| inode == FIRST_NAMESPACE),
        }
    }

    /// Whether a process belongs to it. One that has ended does not.
    pub(super) fn has(&self, pid: u32) -> bool {
        let ancestors = std::iter::successors(Some(pid), |pid| self.parent(*pid));
        ancestors.take(DEEPEST).any(|ancestor| ancestor == self.pid)
    }

    fn parent(&self, pid: u32) -> Option<u32> {
        let stat = fs::read_to_string(self.proc.join(pid.to_string()).join("stat")).ok()?;
        // The name, in parentheses, may hold blanks and parentheses; the state and the parent follow it.
        let (_, after_name) = stat.rsplit_once(')')?;
        after_name.split_ascii_whitespace().nth(1)?.parse().ok().filter(|parent| *parent > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::host::write;

    #[test]
    fn descendants_are_found_by_their_parents_whatever_their_names() {
        let root = tempfile::tempdir().unwrap();
        for (pid, name, parent) in
            [(1, "init", 0), (40, "shell", 1), (50, "wattle", 40), (60, "a) S 1 (b", 50)]
        {
            write(root.path(), &format!("{pid}/stat"), &format!("{pid} ({name}) S {parent} 1 1 0 -1"));
        }
        write(root.path(), "70/stat", "70 (worker) R 60 1 1 0 -1");
        write(root.path(), "80/stat", "80 (other) R 40 1 1 0 -1");
        // Each the other's parent: numbers changed hands between two looks.
        write(root.path(), "91/stat", "91 (x) R 92 1");
        write(root.path(), "92/stat", "92 (y) R 91 1");
        write(root.path(), "93/stat", "93 (z");
        let family = Family { proc: root.path().into(), pid: 50, hidden: false };
        let found: Vec<u32> = (0..100).filter(|pid| family.has(*pid)).collect();
        assert_eq!(found, [50, 60, 70]);
    }

    #[test]
    fn a_child_of_this_process_belongs_to_it_and_its_parent_does_not() {
        let family = Family::this();
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        assert!(family.has(child.id()) && family.has(std::process::id()));
        assert!(!family.has(std::os::unix::process::parent_id()));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!family.has(child.id()), "it has ended");
    }
}
