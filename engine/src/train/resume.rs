//! Which run a start continues, and whether it is the same run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::checkpoint::{self, CheckpointError, Rejected, State};
use crate::config::{Config, Resolved};
use crate::train::{Options, RunDirectory, TrainError};

/// How `--resume` was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Continue the run of `--run-dir`, or else an unfinished run of the same name and configuration.
    Auto,
    /// Start anew.
    Never,
    /// Continue this run or checkpoint directory.
    From(PathBuf),
}

/// A directory to train into and, when there is one, the checkpoint to go on from.
pub(super) struct Start {
    pub(super) run: RunDirectory,
    pub(super) checkpoint: Option<(PathBuf, State)>,
    /// The run directory of that checkpoint, where it has one: its tokenizer is there.
    pub(super) origin: Option<PathBuf>,
    /// What a person should know: refused checkpoints, changed settings.
    pub(super) messages: Vec<String>,
}

/// Keys whose change makes it another model: the weights would not fit.
const MODEL_IDENTITY: [&str; 3] = ["model.", "moe.", "tokenizer."];

/// Keys whose change makes it another run: the weights or the data would not fit.
const RUN_IDENTITY: [&str; 5] = ["model.", "moe.", "tokenizer.", "data.", "run.seed"];

/// Finds or makes the run directory.
pub(super) fn choose(resolved: &Resolved, options: &Options) -> Result<Start, TrainError> {
    let run = &resolved.config.run;
    match (&options.resume, &options.run_directory) {
        (Resume::From(path), run_directory) => from_path(path, run_directory.as_deref(), resolved),
        (Resume::Never, Some(path)) if RunDirectory::at(path).is_in_use() => {
            Err(TrainError::RunExists { path: path.clone() })
        }
        (Resume::Auto, Some(path)) if RunDirectory::at(path).has_checkpoints() => continue_in(path, resolved),
        (_, Some(path)) if RunDirectory::at(path).config().exists() && !RunDirectory::at(path).is_run() => {
            Err(TrainError::ForeignDirectory { path: path.clone() })
        }
        // Also where an earlier start failed before its first checkpoint: there is nothing to lose or to fit.
        (_, Some(path)) => fresh(path),
        (Resume::Never, None) => fresh(&RunDirectory::new_path(&run.directory, &run.name)?),
        (Resume::Auto, None) => match unfinished(resolved)? {
            Some(start) => Ok(start),
            None => fresh(&RunDirectory::new_path(&run.directory, &run.name)?),
        },
    }
}

/// Every resolved value as the run directory keeps it.
pub(super) fn config_text(resolved: &Resolved) -> Result<String, TrainError> {
    resolved.to_toml().map_err(no_toml)
}

fn no_toml(error: toml::ser::Error) -> TrainError {
    let source = std::io::Error::new(std::io::ErrorKind::InvalidData, error);
    TrainError::System { action: "write the configuration as TOML", source }
}

fn fresh(path: &Path) -> Result<Start, TrainError> {
    Ok(Start { run: take(path)?, checkpoint: None, origin: None, messages: Vec::new() })
}

fn take(path: &Path) -> Result<RunDirectory, TrainError> {
    RunDirectory::take(path)?.ok_or_else(|| TrainError::RunBusy { path: path.to_owned() })
}

/// Goes on in a run directory, from its newest valid checkpoint or, without one, from the start.
fn continue_in(path: &Path, resolved: &Resolved) -> Result<Start, TrainError> {
    let run = take(path)?;
    let mut messages = compare(&saved_config(&run.config())?, path, resolved, &RUN_IDENTITY)?;
    let newest = checkpoint::newest_valid(&run.checkpoints(), |_| true)?;
    let checkpoint = newest.map(|newest| {
        messages.extend(newest.rejected.iter().map(refusal));
        (newest.path, newest.state)
    });
    Ok(Start { run, checkpoint, origin: Some(path.to_owned()), messages })
}

/// Goes on from a checkpoint, or from the newest valid one of a run: in its own run directory, or in another that
/// holds no run yet.
fn from_path(path: &Path, given: Option<&Path>, resolved: &Resolved) -> Result<Start, TrainError> {
    let not_found = || CheckpointError::NotFound {
        path: path.to_owned(),
        remedy: "give --resume a run directory with checkpoints, one of its checkpoints, auto or never",
    };
    // Made absolute, so that a path such as `step-00000100` has something above it.
    let path = &path.canonicalize().map_err(|_| not_found())?;
    let is_checkpoint = path.join("manifest.json").exists();
    let origin = match is_checkpoint {
        true => run_of(path),
        false if RunDirectory::at(path).is_run() => Some(path.to_owned()),
        false => return Err(not_found().into()),
    };
    let run = match (given, &origin) {
        (Some(given), _) if is_same(given, origin.as_deref()) => take(given)?,
        (Some(given), _) if RunDirectory::at(given).is_in_use() => {
            return Err(TrainError::RunExists { path: given.to_owned() });
        }
        (Some(given), _) => take(given)?,
        (None, Some(origin)) => take(origin)?,
        (None, None) => {
            take(&RunDirectory::new_path(&resolved.config.run.directory, &resolved.config.run.name)?)?
        }
    };
    let (checkpoint, rejected) = match is_checkpoint {
        true => ((path.to_owned(), checkpoint::load(path, |_| true)?), Vec::new()),
        false => {
            let newest = checkpoint::newest_valid(&RunDirectory::at(path).checkpoints(), |_| true)?
                .ok_or_else(not_found)?;
            ((newest.path, newest.state), newest.rejected)
        }
    };
    // A checkpoint without a step, such as an imported model, has seen no data yet.
    let identity = match checkpoint.1.progress.step {
        0 => &MODEL_IDENTITY[..],
        _ => &RUN_IDENTITY[..],
    };
    let saved = parse_saved(&checkpoint.0, &checkpoint.1.config_toml)?;
    let mut messages = compare(&saved, run.path(), resolved, identity)?;
    messages.extend(rejected.iter().map(refusal));
    Ok(Start { run, checkpoint: Some(checkpoint), origin, messages })
}

/// The run directory that a checkpoint lies in; none when it was copied out of it.
fn run_of(checkpoint: &Path) -> Option<PathBuf> {
    let run = checkpoint.parent()?.parent()?;
    RunDirectory::at(run).config().exists().then(|| run.to_owned())
}

fn is_same(given: &Path, origin: Option<&Path>) -> bool {
    given.canonicalize().is_ok_and(|given| Some(given.as_path()) == origin)
}

fn refusal(rejected: &Rejected) -> String {
    format!("checkpoint refused: {}", rejected.reason)
}

/// The newest run of this name and exactly this configuration that has tokens left to train.
fn unfinished(resolved: &Resolved) -> Result<Option<Start>, TrainError> {
    let run = &resolved.config.run;
    for candidate in RunDirectory::candidates(&run.directory, &run.name) {
        if saved_config(&candidate.config()).is_ok_and(|saved| saved.config == resolved.config) {
            let (Some(manifest), _) = checkpoint::newest_header(&candidate.checkpoints())? else { continue };
            if manifest.progress.tokens >= run.max_tokens.get() {
                continue;
            }
            match continue_in(candidate.path(), resolved) {
                Err(TrainError::RunBusy { .. }) => continue,
                other => return other.map(Some),
            }
        }
    }
    Ok(None)
}

/// The configuration that a run directory keeps.
fn saved_config(path: &Path) -> Result<Resolved, TrainError> {
    parse_saved(path, &crate::files::read_to_string(path)?)
}

/// A configuration that was saved at `path`. What an older version did not know yet gets its default.
fn parse_saved(path: &Path, text: &str) -> Result<Resolved, TrainError> {
    let corrupt = |error| CheckpointError::Corrupt {
        path: path.to_owned(),
        tensor: None,
        what: format!("its configuration does not load: {error}"),
    };
    Ok(Config::parse(&path.display().to_string(), text.as_bytes(), &[]).map_err(corrupt)?)
}

/// Refuses another model or other data than `saved`, the configuration of the run in `path`; names what else has
/// changed.
fn compare(
    saved: &Resolved,
    path: &Path,
    resolved: &Resolved,
    identity: &[&str],
) -> Result<Vec<String>, TrainError> {
    let (saved, given) = (flatten(saved)?, flatten(resolved)?);
    let mut messages = Vec::new();
    for key in saved.keys().chain(given.keys().filter(|key| !saved.contains_key(*key))) {
        let show = |side: Option<&String>| side.cloned().unwrap_or_else(|| "not set".to_owned());
        let (before, now) = (saved.get(key), given.get(key));
        if before == now {
            continue;
        }
        if identity.iter().any(|prefix| key.starts_with(prefix)) {
            return Err(TrainError::AnotherRun {
                path: path.to_owned(),
                key: key.clone(),
                saved: show(before),
                given: show(now),
            });
        }
        messages.push(format!("{key} was {} before, now {}", show(before), show(now)));
    }
    Ok(messages)
}

/// Dotted keys with their values as text.
fn flatten(resolved: &Resolved) -> Result<BTreeMap<String, String>, TrainError> {
    let table = toml::Table::try_from(&resolved.config).map_err(no_toml)?;
    let sections = table.iter().filter_map(|(section, values)| Some((section, values.as_table()?)));
    Ok(sections
        .flat_map(|(section, values)| {
            values.iter().map(move |(key, value)| (format!("{section}.{key}"), value.to_string()))
        })
        .collect())
}
