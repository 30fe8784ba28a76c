//! The run directory: where each file of a run is, held by one process at a time.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::files::{self, FileError};

/// The file that is locked by the process that trains into a directory.
const LOCK: &str = ".lock";

/// A run's directory on disk.
#[derive(Clone, Debug)]
pub struct RunDirectory {
    path: PathBuf,
    /// Locked while this process trains into the directory.
    lock: Option<Arc<File>>,
}

impl RunDirectory {
    /// Makes the directory if it is not there and takes it for this process; none when another process has it.
    ///
    /// # Errors
    /// When it cannot be made or written to.
    pub fn take(path: &Path) -> Result<Option<Self>, FileError> {
        let checkpoints = path.join("checkpoints");
        files::create_directory(&checkpoints)?;
        let lock = path.join(LOCK);
        let file = File::create(&lock).map_err(failed("create", &lock))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(RunDirectory { path: path.to_owned(), lock: Some(Arc::new(file)) })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed("lock", &lock)(error)),
        }
    }

    /// A path `<base>/<name>-<UTC time>` that did not exist, numbered when that is taken; the directory is made.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new_path(base: &Path, name: &str) -> Result<PathBuf, FileError> {
        let time = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S");
        let first = base.join(format!("{name}-{time}"));
        let mut path = first.clone();
        files::create_directory(base)?;
        for number in 2.. {
            match fs::create_dir(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    path = base.join(format!("{name}-{time}-{number}"));
                }
                Err(error) => return Err(failed("create", &path)(error)),
                Ok(()) => break,
            }
        }
        files::sync_directory(base)?;
        Ok(path)
    }

    /// A directory to read from.
    pub fn at(path: &Path) -> Self {
        RunDirectory { path: path.to_owned(), lock: None }
    }

    /// Whether a checkpoint, sound or not, was ever written here.
    pub fn has_checkpoints(&self) -> bool {
        fs::read_dir(self.checkpoints()).is_ok_and(|mut entries| entries.next().is_some())
    }

    /// Whether a new run here would overwrite something.
    pub fn is_in_use(&self) -> bool {
        self.config().exists() || self.has_checkpoints()
    }

    /// Whether a run was started here; a config.toml alone can be anybody's.
    pub fn is_run(&self) -> bool {
        self.config().exists() && self.checkpoints().exists()
    }

    /// Whether this process holds the directory for training.
    pub fn is_taken(&self) -> bool {
        self.lock.is_some()
    }

    /// Whether it can be seen that no process trains into the directory now; one may begin right after.
    pub fn is_idle(&self) -> bool {
        File::open(self.path.join(LOCK)).is_ok_and(|lock| lock.try_lock_shared().is_ok())
    }

    /// Run directories of this name below `base`, newest first.
    pub fn candidates(base: &Path, name: &str) -> Vec<Self> {
        let prefix = format!("{name}-");
        let mut paths: Vec<PathBuf> = fs::read_dir(base)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)))
            .collect();
        paths.sort();
        paths.reverse();
        paths.iter().map(|path| Self::at(path)).collect()
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every resolved value of the configuration.
    pub fn config(&self) -> PathBuf {
        self.path.join("config.toml")
    }

    /// One object a step.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// Energy and carbon.
    pub fn ledger(&self) -> PathBuf {
        self.path.join("ledger.sqlite")
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> PathBuf {
        self.path.join("tokenizer.json")
    }

    /// The checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> FileError {
    move |source| FileError { path: path.to_owned(), what: what.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;
    use crate::files::faults;

    /// The directories whose entries `body` makes durable.
    fn synced(body: impl FnOnce()) -> Vec<PathBuf> {
        let synced = Rc::new(RefCell::new(Vec::new()));
        let list = synced.clone();
        let hook = move |what: &'static str, path: &Path| {
            if what == "sync the directory" {
                list.borrow_mut().push(path.to_owned());
            }
            Ok(())
        };
        faults::watch(hook, body);
        synced.take()
    }

    #[test]
    fn every_directory_above_the_checkpoints_is_durable_before_the_run_starts() {
        let root = tempfile::tempdir().unwrap();
        let (base, run) = (root.path().join("runs"), root.path().join("runs/a"));
        let given = synced(|| assert!(RunDirectory::take(&run).unwrap().is_some()));
        assert_eq!(given, [root.path(), base.as_path(), run.as_path()]);
        let mut path = PathBuf::new();
        let named = synced(|| path = RunDirectory::new_path(&base, "b").unwrap());
        assert_eq!(named, [base]);
        assert_eq!(synced(|| drop(RunDirectory::take(&path).unwrap())), [path]);
    }
}
