//! Loading: no byte is used that does not match its checksum.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::directory;
use super::error::{CheckpointError, Result};
use super::manifest::{self, Manifest, Shard, TensorRecord};
use super::safetensors::Reader;
use super::state::Progress;
use super::state::{NamedTensor, State};

/// Which tensors of a checkpoint are kept in memory, by name.
pub type Wanted = fn(&str) -> bool;

/// Loads the checkpoint in `directory` and verifies every byte of it, those of tensors that are not wanted included.
///
/// # Errors
/// [`CheckpointError::NotFound`] when there is no such directory; [`CheckpointError::Corrupt`] with the file, and the
/// tensor where it can be named; [`CheckpointError::Unsupported`] for another format version.
pub fn load(directory: &Path, wanted: Wanted) -> Result<State> {
    if !directory.exists() {
        let remedy = "give the path of a step-N directory inside a run's checkpoints";
        return Err(CheckpointError::NotFound { path: directory.to_owned(), remedy });
    }
    let manifest = Manifest::read(directory).map_err(missing_is_corrupt)?;
    check_manifest(directory, &manifest)?;
    let mut tensors = BTreeMap::new();
    for shard in &manifest.shards {
        for NamedTensor { name, tensor } in read_shard(directory, shard, &manifest.tensors, wanted)? {
            tensors.insert(name, tensor);
        }
    }
    let take = |record: &TensorRecord| match tensors.remove(&record.name) {
        Some(tensor) => Ok(NamedTensor { name: record.name.clone(), tensor }),
        None => Err(corrupt(
            &directory.join(manifest::FILE_NAME),
            Some(&record.name),
            format!("its shard {} is not among the shards", record.shard),
        )),
    };
    let records = manifest.tensors.iter().filter(|record| wanted(&record.name));
    Ok(State {
        tensors: records.map(take).collect::<Result<_>>()?,
        progress: manifest.progress,
        config_toml: manifest.config_toml,
        extra: manifest.extra,
    })
}

/// What a checkpoint says of itself, without its tensors.
#[derive(Clone, Debug)]
pub struct Header {
    /// Its directory.
    pub path: PathBuf,
    /// How far the run was.
    pub progress: Progress,
    /// Small further state.
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// The newest checkpoint whose manifest is right, and newer ones whose manifest is not; tensors are not looked at.
///
/// # Errors
/// When the directory cannot be listed.
pub fn newest_header(checkpoints_dir: &Path) -> Result<(Option<Header>, Vec<Rejected>)> {
    let mut rejected = Vec::new();
    for directory::StepDirectory { path, .. } in directory::list(checkpoints_dir)? {
        match Manifest::read(&path) {
            Ok(Manifest { progress, extra, .. }) => {
                return Ok((Some(Header { path, progress, extra }), rejected));
            }
            Err(reason) => rejected.push(Rejected { path, reason }),
        }
    }
    Ok((None, rejected))
}

/// The newest checkpoint of which every byte is right.
#[derive(Debug)]
pub struct Newest {
    /// Its directory.
    pub path: PathBuf,
    /// Its content.
    pub state: State,
    /// Newer ones that were refused, newest first: the user should hear of them.
    pub rejected: Vec<Rejected>,
}

/// A checkpoint that was passed over.
#[derive(Debug)]
pub struct Rejected {
    /// Its directory.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: CheckpointError,
}

/// Loads the newest valid checkpoint of a run; nothing when none was ever committed. Changes nothing on the disk.
///
/// A damaged checkpoint is passed over. What the user can mend without losing steps is not: no permission, too little
/// memory, a newer format.
///
/// # Errors
/// As [`load`]; [`CheckpointError::Corrupt`] when there are checkpoints and none is valid.
pub fn newest_valid(checkpoints_dir: &Path, wanted: Wanted) -> Result<Option<Newest>> {
    let mut rejected = Vec::new();
    for directory::StepDirectory { path, .. } in directory::list(checkpoints_dir)? {
        match load(&path, wanted) {
            Ok(state) => return Ok(Some(Newest { path, state, rejected })),
            Err(reason) if is_damage(&reason) => rejected.push(Rejected { path, reason }),
            Err(error) => return Err(error),
        }
    }
    if rejected.is_empty() {
        return Ok(None);
    }
    let reason = |rejected: &Rejected| match &rejected.reason {
        CheckpointError::Corrupt { path, what, .. } => format!("{}: {what}", path.display()),
        reason => reason.to_string(),
    };
    let reasons: Vec<String> = rejected.iter().map(reason).collect();
    Err(corrupt(checkpoints_dir, None, format!("none of its checkpoints is valid ({})", reasons.join(", "))))
}

/// True when the bytes are lost for good, so that an older checkpoint is the best there is.
fn is_damage(error: &CheckpointError) -> bool {
    match error {
        CheckpointError::Corrupt { .. } => true,
        // A sector that the disk cannot read any more.
        CheckpointError::Io(error) => error.source.raw_os_error() == Some(libc::EIO),
        _ => false,
    }
}

/// The tensors of one shard, when header, sizes and hashes are as the manifest says.
fn read_shard(
    directory: &Path,
    shard: &Shard,
    records: &[TensorRecord],
    wanted: Wanted,
) -> Result<Vec<NamedTensor>> {
    let path = directory.join(&shard.file);
    let records: BTreeMap<&str, &TensorRecord> = records
        .iter()
        .filter(|record| record.shard == shard.file)
        .map(|record| (record.name.as_str(), record))
        .collect();
    let open = || {
        Reader::open(&path).map_err(|error| match missing_is_corrupt(error) {
            // The manifest is sound and of this format, so nothing strange was ever written to the shard.
            CheckpointError::Unsupported { path, what } => {
                CheckpointError::Corrupt { path, tensor: None, what }
            }
            error => error,
        })
    };
    let reader = open()?;
    let header = &reader.header;
    if header.file_bytes() != shard.bytes {
        let what = format!("it has {} bytes, the manifest says {}", header.file_bytes(), shard.bytes);
        return Err(corrupt(&path, None, what));
    }
    for entry in &header.entries {
        let agrees = |record: &&TensorRecord| {
            record.dtype == entry.stored.name()
                && record.shape == entry.shape
                && record.offset == header.data_start + entry.start
                && record.bytes == entry.bytes
        };
        if !records.get(entry.name.as_str()).is_some_and(agrees) {
            let what = "the file's header and the manifest do not agree on it".to_owned();
            return Err(corrupt(&path, Some(&entry.name), what));
        }
    }
    if header.entries.len() != records.len() {
        let what = format!("it has {} tensors, the manifest says {}", header.entries.len(), records.len());
        return Err(corrupt(&path, None, what));
    }
    let (tensors, blake3) = reader.read_tensors(wanted)?;
    if blake3.to_hex().as_str() != shard.blake3 {
        return Err(name_the_damage(&path, open()?, &records)?);
    }
    Ok(tensors)
}

/// The shard's hash is wrong: reads it again and finds the tensor whose own hash is wrong too.
fn name_the_damage(
    path: &Path,
    reader: Reader,
    records: &BTreeMap<&str, &TensorRecord>,
) -> Result<CheckpointError> {
    for (name, blake3) in reader.hash_tensors()? {
        let found = blake3.to_hex();
        if let Some(record) = records.get(name.as_str()).filter(|record| record.blake3 != found.as_str()) {
            let what = format!("its BLAKE3 is {found}, the manifest says {}", record.blake3);
            return Ok(corrupt(path, Some(&name), what));
        }
    }
    Ok(corrupt(path, None, "its header does not match the manifest's BLAKE3".to_owned()))
}

fn check_manifest(directory: &Path, manifest: &Manifest) -> Result<()> {
    let fault = |what: String| Err(corrupt(&directory.join(manifest::FILE_NAME), None, what));
    if let Some(step) = directory::step_of(directory).filter(|&step| step != manifest.progress.step) {
        return fault(format!("it is of step {}, its directory of step {step}", manifest.progress.step));
    }
    let Progress { step, nonfinite_steps, .. } = manifest.progress;
    if nonfinite_steps > step {
        return fault(format!("it counts {nonfinite_steps} skipped steps among {step}"));
    }
    if blake3::hash(manifest.config_toml.as_bytes()).to_hex().as_str() != manifest.config_blake3 {
        return fault("config_toml does not match config_blake3".to_owned());
    }
    for Shard { file, .. } in &manifest.shards {
        // A manifest can come from elsewhere; it must not point out of its directory.
        if Path::new(file).file_name() != Some(file.as_ref()) {
            return fault(format!("shard {file:?} is not the plain name of a file"));
        }
    }
    Ok(())
}

/// A file that the checkpoint must have and has not is damage, not a wrong path; so is one of absurd size.
fn missing_is_corrupt(error: CheckpointError) -> CheckpointError {
    match error {
        CheckpointError::Io(error)
            if matches!(
                error.source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidData
            ) =>
        {
            corrupt(&error.path, None, error.source.to_string())
        }
        error => error,
    }
}

fn corrupt(path: &Path, tensor: Option<&str>, what: String) -> CheckpointError {
    CheckpointError::Corrupt { path: path.to_owned(), tensor: tensor.map(str::to_owned), what }
}
