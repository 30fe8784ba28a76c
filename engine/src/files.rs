//! Durable files: what is written here is either wholly on the disk or not there at all.
//!
//! The order is always: write under a temporary name, fsync, rename, fsync the directory. The rename is the
//! commit. A failed fsync is never retried: the kernel may already have dropped the dirty pages (Rebello et al.,
//! USENIX ATC'20), so the new file is given up and the old one stays.

mod durable;
mod error;
#[cfg(test)]
pub(crate) mod faults;
mod jsonl;

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

pub(crate) use durable::DurableFile;
pub use error::FileError;
pub use jsonl::{JsonlWriter, read_jsonl, trim_jsonl_after};

/// Replaces the file at `path` by `bytes`, so that a crash leaves either the old content or the new.
///
/// # Errors
/// [`FileError`]; the old file is then untouched.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    replace_atomically(path, |file| file.write(bytes))
}

/// The text of a file.
///
/// # Errors
/// [`FileError`], also when it is not UTF-8.
pub fn read_to_string(path: &Path) -> Result<String, FileError> {
    attempt("read", path, || fs::read_to_string(path))
}

/// Replaces the file at `path` by whatever `fill` writes. A device or a pipe takes the bytes as they come: a rename
/// would put a file in its place.
pub(crate) fn replace_atomically<E: From<FileError>>(
    path: &Path,
    fill: impl FnOnce(&mut DurableFile) -> Result<(), E>,
) -> Result<(), E> {
    if fs::metadata(path).is_ok_and(|existing| !existing.is_file()) {
        let mut file = DurableFile::create(path)?;
        fill(&mut file)?;
        return Ok(file.flush()?);
    }
    let temporary = with_suffix(path, ".tmp");
    let written = DurableFile::create(&temporary).map_err(E::from).and_then(|mut file| {
        fill(&mut file)?;
        file.sync()?;
        rename(&temporary, path)?;
        Ok(sync_directory(parent(path))?)
    });
    if written.is_err() {
        // Best effort: the error that is returned says what went wrong first.
        let _ = attempt("remove", &temporary, || fs::remove_file(&temporary));
    }
    written
}

/// Makes the finished directory `temporary` appear as `target`; an older `target` is replaced.
///
/// The files inside must have been synced already. An older `target` first moves to a name ending in `.old`, where a
/// reader still finds it, and is removed last: at no moment are both out of reach.
///
/// # Errors
/// [`FileError`]; the older `target` is then still there, under its own or its set-aside name.
pub fn commit_directory(temporary: &Path, target: &Path) -> Result<(), FileError> {
    recover_directory(target)?;
    sync_directory(temporary)?;
    if !target.exists() {
        rename(temporary, target)?;
        return sync_directory(parent(target));
    }
    let aside = set_aside(target);
    rename(target, &aside)?;
    let replaced = sync_directory(parent(target)).and_then(|()| rename(temporary, target));
    if replaced.is_err() {
        let _ = rename(&aside, target);
        return replaced;
    }
    sync_directory(parent(target))?;
    remove_directory(&aside)
}

/// Ends what a crash inside [`commit_directory`] left: a set-aside directory goes back to its own name, or is
/// removed where the new one had already taken its place.
pub(crate) fn recover_directory(target: &Path) -> Result<(), FileError> {
    let aside = set_aside(target);
    if !aside.exists() {
        return Ok(());
    }
    if target.exists() {
        return remove_directory(&aside);
    }
    rename(&aside, target)?;
    sync_directory(parent(target))
}

/// Where [`commit_directory`] keeps the directory that it is about to replace.
pub(crate) fn set_aside(target: &Path) -> PathBuf {
    with_suffix(target, ".old")
}

/// Creates `path` and its missing parents, durably.
pub(crate) fn create_directory(path: &Path) -> Result<(), FileError> {
    if path.is_dir() {
        return Ok(());
    }
    create_directory(parent(path))?;
    attempt("create the directory", path, || match fs::create_dir(path) {
        // Another process was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        done => done,
    })?;
    sync_directory(parent(path))
}

/// Removes a directory and all it holds. It first gets a `.tmp` name, so that a crash half way leaves a leftover
/// that readers skip, not a damaged directory under a good name.
pub(crate) fn remove_directory(path: &Path) -> Result<(), FileError> {
    if path.extension().is_some_and(|extension| extension == "tmp") {
        return attempt("remove", path, || fs::remove_dir_all(path));
    }
    let doomed = with_suffix(path, ".tmp");
    rename(path, &doomed)?;
    attempt("remove", &doomed, || fs::remove_dir_all(&doomed))
}

/// Renames `from` to `to`. Durable only after [`sync_directory`] of the parent.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), FileError> {
    attempt("rename", from, || fs::rename(from, to))
}

/// Makes the entries of a directory (creations, renames, removals) durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), FileError> {
    attempt("sync the directory", path, || match File::open(path)?.sync_all() {
        // Some file systems have no fsync for directories and say so; PostgreSQL (fd.c) goes on as well.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        done => done,
    })
}

/// Reads a whole file of at most `limit_bytes`; a longer one is refused before anything is allocated.
pub(crate) fn read_at_most(path: &Path, limit_bytes: u64) -> Result<Vec<u8>, FileError> {
    attempt("read", path, || {
        let bytes = fs::metadata(path)?.len();
        if bytes > limit_bytes {
            let what = format!("it has {bytes} bytes, at most {limit_bytes} are expected");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        fs::read(path)
    })
}

/// Free bytes that this process may use on the file system of `path`.
pub(crate) fn free_bytes(path: &Path) -> Result<u64, FileError> {
    attempt("ask for the free space of", path, || {
        let c_path = CString::new(path.as_os_str().as_bytes())?;
        let mut stats = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
        // SAFETY: `c_path` is NUL-terminated and `stats` is a writable statvfs, both alive during the call.
        if unsafe { libc::statvfs(c_path.as_ptr(), stats.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: zeroed integers are a valid statvfs, and the call has filled it.
        let stats = unsafe { stats.assume_init() };
        // The fields' widths differ between systems.
        let bytes = u128::from(stats.f_bavail) * u128::from(stats.f_frsize);
        Ok(u64::try_from(bytes).unwrap_or(u64::MAX))
    })
}

/// Runs one file operation; its error says what was tried on which path.
pub(crate) fn attempt<T>(
    what: &'static str,
    path: &Path,
    run: impl FnOnce() -> io::Result<T>,
) -> Result<T, FileError> {
    #[cfg(test)]
    let run = || faults::before(what, path).and_then(|()| run());
    run().map_err(|source| FileError { path: path.to_owned(), what: what.to_owned(), source })
}

/// The directory that holds `path`; the current one for a bare name.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// `path` with `suffix` after its whole name.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_atomic_write_fails_at_any_operation_without_touching_the_old_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.json");
        write_atomically(&path, b"old").unwrap();
        let operations = faults::count(|| write_atomically(&path, b"old").unwrap());
        assert!(operations >= 5, "create, write, sync, rename, sync directory: {operations}");
        for n in 0..operations {
            let outcome =
                faults::fail_once(n, io::ErrorKind::StorageFull, || write_atomically(&path, b"new bytes"));
            assert!(outcome.unwrap_err().to_string().contains("free some space"));
            let content = fs::read(&path).unwrap();
            // The last operation comes after the rename, which is the commit.
            let committed = n == operations - 1;
            assert_eq!(content, if committed { &b"new bytes"[..] } else { b"old" }, "operation {n}");
            assert!(!with_suffix(&path, ".tmp").exists());
            write_atomically(&path, b"old").unwrap();
        }
    }

    #[test]
    fn a_directory_is_replaced_whole() {
        let root = tempfile::tempdir().unwrap();
        let (target, temporary) = (root.path().join("step"), root.path().join("step.tmp"));
        fs::create_dir(&target).unwrap();
        fs::write(target.join("only-in-old"), "1").unwrap();
        fs::create_dir(&temporary).unwrap();
        fs::write(temporary.join("only-in-new"), "2").unwrap();
        commit_directory(&temporary, &target).unwrap();
        assert!(target.join("only-in-new").exists() && !target.join("only-in-old").exists());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_replacement_puts_the_old_directory_back() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("step");
        fs::create_dir(&target).unwrap();
        let temporary = root.path().join("step.tmp");
        fs::create_dir(&temporary).unwrap();
        // The operations: sync, rename the old one aside, sync, rename the new one.
        for n in 0..4 {
            faults::fail_once(n, io::ErrorKind::Other, || commit_directory(&temporary, &target)).unwrap_err();
            assert!(target.exists() && temporary.exists() && !set_aside(&target).exists(), "operation {n}");
        }
    }

    #[test]
    fn missing_parents_are_created_and_an_existing_directory_is_kept() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("a/b/c");
        create_directory(&deep).unwrap();
        create_directory(&deep).unwrap();
        assert!(deep.is_dir());
    }

    #[test]
    fn a_file_beyond_the_limit_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("f");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read_at_most(&path, 5).unwrap(), b"12345");
        assert_eq!(read_at_most(&path, 4).unwrap_err().exit_code(), 65);
    }

    #[test]
    fn free_space_is_known_for_a_directory_and_an_error_for_a_missing_one() {
        let root = tempfile::tempdir().unwrap();
        assert!(free_bytes(root.path()).unwrap() > 0);
        assert!(free_bytes(&root.path().join("missing")).is_err());
    }
}
