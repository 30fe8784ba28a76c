//! The names inside `checkpoints/`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::files::{self, FileError};

/// One committed checkpoint directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StepDirectory {
    /// The step in its name.
    pub(super) step: u64,
    /// True for `step-N.old`, which a newer save of the same step is replacing.
    pub(super) set_aside: bool,
    /// Where it is.
    pub(super) path: PathBuf,
}

/// The directory of a step.
pub(super) fn of_step(checkpoints_dir: &Path, step: u64) -> PathBuf {
    checkpoints_dir.join(format!("step-{step:08}"))
}

/// The step in a directory's name, if it is exactly as [`of_step`] writes it.
pub(super) fn step_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (name == format!("step-{step:08}")).then_some(step)
}

/// All committed checkpoints, newest first; a set-aside one follows its replacement. Other names are skipped.
pub(super) fn list(checkpoints_dir: &Path) -> Result<Vec<StepDirectory>, FileError> {
    let mut found: Vec<StepDirectory> = entries(checkpoints_dir)?
        .into_iter()
        .filter_map(|path| {
            let set_aside = path.extension().is_some_and(|extension| extension == "old");
            let step = if set_aside { step_of(&path.with_extension("")) } else { step_of(&path) }?;
            Some(StepDirectory { step, set_aside, path })
        })
        .collect();
    found.sort_by_key(|directory| (std::cmp::Reverse(directory.step), directory.set_aside));
    Ok(found)
}

/// What crashed saves and removals left behind.
pub(super) fn leftovers(checkpoints_dir: &Path) -> Result<Vec<PathBuf>, FileError> {
    let is_leftover = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("step-") && name.ends_with(".tmp")
    };
    Ok(entries(checkpoints_dir)?.into_iter().filter(is_leftover).collect())
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, FileError> {
    let listed = files::attempt("list", directory, || {
        fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect()
    });
    match listed {
        Err(error) if error.source.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_are_listed_newest_first_and_other_names_are_skipped() {
        let root = tempfile::tempdir().unwrap();
        for name in [
            "step-00000100",
            "step-00000300.tmp",
            "step-00000200",
            "step-00000200.old",
            "step-123456789",
            "step-100",
            "step-+0000100",
            "step-00000100.old.tmp",
            "best",
        ] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        let listed: Vec<_> = list(root.path()).unwrap().into_iter().map(|d| (d.step, d.set_aside)).collect();
        assert_eq!(listed, [(123456789, false), (200, false), (200, true), (100, false)]);
        let mut names = leftovers(root.path()).unwrap();
        names.sort();
        assert_eq!(names, ["step-00000100.old.tmp", "step-00000300.tmp"].map(|name| root.path().join(name)));
    }

    #[test]
    fn a_missing_directory_lists_nothing() {
        assert_eq!(list(Path::new("/nonexistent/checkpoints")).unwrap(), []);
    }
}
