//! A crash before each file operation of a save, with what was not synced lost.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::rc::Rc;

use super::super::{newest_valid, save};
use super::*;
use crate::files::faults;

/// A save into a directory where others came before. `before` is what loads when the save has not happened.
struct Case {
    name: &'static str,
    earlier: Vec<State>,
    saved: State,
    keep: usize,
}

fn cases() -> Vec<Case> {
    let case = |name, earlier, saved, keep| Case { name, earlier, saved, keep };
    vec![
        case("the first save", vec![], state(100, 1), 3),
        case("the second save", vec![state(100, 1)], state(200, 1), 3),
        case("the only one kept", vec![state(100, 1)], state(200, 1), 1),
        case("a replaced step", vec![state(100, 1), state(200, 1)], state(200, 2), 2),
        case("a replaced only step", vec![state(200, 1)], state(200, 2), 1),
        case("back to an earlier line", vec![state(100, 1), state(200, 1)], state(150, 2), 2),
    ]
}

impl Case {
    fn prepare(&self) -> tempfile::TempDir {
        let root = scratch();
        for earlier in &self.earlier {
            save(root.path(), earlier, 3).unwrap();
        }
        root
    }

    fn save(&self, root: &Path) -> super::super::Result<PathBuf> {
        save(root, &self.saved, self.keep)
    }

    fn num_operations(&self) -> usize {
        let root = self.prepare();
        faults::count(|| drop(self.save(root.path()).unwrap()))
    }

    /// The newest or the previous state loads, and the next save works and leaves no leftovers.
    fn check(&self, root: &Path, context: &str) {
        match newest_valid(root, |_| true).unwrap() {
            Some(found) => {
                assert!(found.rejected.is_empty(), "{context}: {:?}", found.rejected);
                let before = self.earlier.last().is_some_and(|before| same(before, &found.state));
                assert!(before || same(&self.saved, &found.state), "{context}");
            }
            None => assert!(self.earlier.is_empty(), "{context}: nothing loads"),
        }
        save(root, &state(900, 1), 1).unwrap();
        assert_eq!(names(root), ["step-00000900"], "{context}");
    }
}

#[test]
fn a_crash_before_any_operation_leaves_the_newest_or_the_previous_checkpoint() {
    for case in cases() {
        for n in 0..case.num_operations() {
            let root = case.prepare();
            faults::crash_at(n, || case.save(root.path())).unwrap_err();
            case.check(root.path(), &format!("{}, crash before operation {n}", case.name));
        }
    }
}

#[test]
fn an_error_of_any_operation_leaves_the_newest_or_the_previous_checkpoint_and_no_leftovers() {
    for case in cases() {
        for n in 0..case.num_operations() {
            let root = case.prepare();
            let context = format!("{}, error of operation {n}", case.name);
            let outcome = faults::fail_once(n, ErrorKind::StorageFull, || case.save(root.path()));
            match outcome {
                // Only the note of the parent's hash may be missing.
                Ok(_) => assert!(same(&newest(root.path()).state, &case.saved), "{context}"),
                Err(error) => assert_eq!(error.exit_code(), 74, "{context}: {error}"),
            }
            let half_written = root.path().join(format!("step-{:08}.tmp", case.saved.progress.step));
            assert!(!half_written.exists(), "{context}");
            case.check(root.path(), &context);
        }
    }
}

/// What a power loss at this moment would take.
#[derive(Default)]
struct Disk {
    /// Files with bytes that no fsync has covered.
    unsynced_files: BTreeSet<PathBuf>,
    /// Directories with new entries that no fsync has covered.
    unsynced_directories: BTreeSet<PathBuf>,
    /// A finished checkpoint has its name, but the rename is not durable.
    commit_is_pending: bool,
}

impl Disk {
    /// Follows one operation and checks the order that makes the rename a commit.
    fn follow(&mut self, what: &str, path: &Path) {
        let parent = path.parent().unwrap().to_owned();
        match what {
            "create" => {
                self.unsynced_files.insert(path.to_owned());
                self.unsynced_directories.insert(parent);
            }
            "create the directory" => drop(self.unsynced_directories.insert(parent)),
            "write" => drop(self.unsynced_files.insert(path.to_owned())),
            "sync" => drop(self.unsynced_files.remove(path)),
            "sync the directory" => {
                self.unsynced_directories.remove(path);
                self.commit_is_pending &= path != parent_of_steps(path);
            }
            "rename" if path.extension().is_some_and(|extension| extension == "tmp") => {
                assert!(self.unsynced_files.is_empty(), "renamed before fsync: {:?}", self.unsynced_files);
                assert!(!self.unsynced_directories.contains(path), "renamed before its entries are durable");
                self.commit_is_pending = true;
            }
            "remove" => assert!(!self.commit_is_pending, "{} removed too early", path.display()),
            "rename"
            | "list"
            | "read"
            | "open"
            | "ask for the free space of"
            | "describe the checkpoint in" => {}
            unknown => panic!("unknown operation {unknown:?}"),
        }
    }
}

/// The directory itself when it holds the steps; a step's directory gives another.
fn parent_of_steps(path: &Path) -> &Path {
    let is_step = path.file_name().unwrap().to_string_lossy().starts_with("step-");
    if is_step { path.parent().unwrap() } else { path }
}

#[test]
fn a_power_loss_that_takes_all_unsynced_bytes_leaves_the_newest_or_the_previous_checkpoint() {
    for case in cases() {
        for n in 0..=case.num_operations() {
            for kept_share in [0.0, 0.5] {
                let root = case.prepare();
                let disk = Rc::new(RefCell::new(Disk::default()));
                let (seen, mut count) = (disk.clone(), 0);
                let crash = move |what: &'static str, path: &Path| {
                    count += 1;
                    if count > n {
                        return Err(ErrorKind::Interrupted.into());
                    }
                    seen.borrow_mut().follow(what, path);
                    Ok(())
                };
                let _ = faults::watch(crash, || case.save(root.path()));
                for file in &disk.borrow().unsynced_files {
                    // The crash may have come before the file was there.
                    if let Ok(file) = fs::OpenOptions::new().write(true).open(file) {
                        let bytes = file.metadata().unwrap().len();
                        file.set_len((bytes as f64 * kept_share) as u64).unwrap();
                    }
                }
                case.check(root.path(), &format!("{}, power loss at {n}", case.name));
            }
        }
    }
}

#[test]
fn leftovers_are_ignored_by_readers_and_cleaned_by_the_next_save() {
    let root = scratch();
    let path = save(root.path(), &state(100, 1), 3).unwrap();
    copy_tree(&path, &root.path().join("step-00000300.tmp"));
    copy_tree(&path, &root.path().join("step-00000100.old.tmp"));
    fs::write(root.path().join("notes.txt"), "mine").unwrap();
    let found = newest(root.path());
    assert!(same(&found.state, &state(100, 1)) && found.rejected.is_empty());
    save(root.path(), &state(200, 1), 3).unwrap();
    assert_eq!(names(root.path()), ["notes.txt", "step-00000100", "step-00000200"]);
}

#[test]
fn a_checkpoint_set_aside_by_a_crash_loads_and_gets_its_name_back() {
    let root = scratch();
    let path = save(root.path(), &state(100, 1), 3).unwrap();
    fs::rename(&path, root.path().join("step-00000100.old")).unwrap();
    assert!(same(&newest(root.path()).state, &state(100, 1)));
    save(root.path(), &state(200, 1), 3).unwrap();
    assert_eq!(names(root.path()), ["step-00000100", "step-00000200"]);
}
