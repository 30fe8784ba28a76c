//! Saving: write beside, sync, rename, and only then let go of older checkpoints.

use std::io;
use std::path::{Path, PathBuf};

use super::directory;
use super::error::{CheckpointError, Result};
use super::manifest::{self, FORMAT, Manifest, Shard, TensorRecord};
use super::safetensors::{self, Header, Source};
use super::state::State;
use crate::files::{self, DurableFile, FileError};

/// The file that holds this rank's tensors.
const SHARD_FILE: &str = "rank-0.safetensors";

/// Saves `state` as `checkpoints_dir/step-N`, which appears whole or not at all, and gives its path.
///
/// When it is in place, all but the newest `keep` checkpoints are removed; the new one always stays. Checkpoints of
/// later steps belong to a line of training that a resume from an earlier one has left, and are removed as well: the
/// newest is always the line that goes on.
///
/// # Errors
/// [`CheckpointError::Io`], above all for a full disk, which is noticed before anything is written where the file
/// system tells its free space; [`CheckpointError::Tensor`] for a tensor name used twice; whatever keeps the source from giving
/// its tensors. Older checkpoints are then untouched.
pub(crate) fn save<S: Source>(
    checkpoints_dir: &Path,
    state: &State<S>,
    keep: usize,
) -> Result<PathBuf, S::Error> {
    files::create_directory(checkpoints_dir)?;
    clean_leftovers(checkpoints_dir)?;
    let free_bytes = files::free_bytes(checkpoints_dir)?;
    save_within(checkpoints_dir, state, keep, free_bytes)
}

/// [`save`] where `free_bytes` are left on the disk.
pub(super) fn save_within<S: Source>(
    checkpoints_dir: &Path,
    state: &State<S>,
    keep: usize,
    free_bytes: u64,
) -> Result<PathBuf, S::Error> {
    let step = state.progress.step;
    let target = directory::of_step(checkpoints_dir, step);
    let header = Header::new(state.tensors.describe())?;
    check_space(&target, &header, &state.config_toml, free_bytes)?;
    let parent = directory::list(checkpoints_dir)?.into_iter().find(|older| older.step < step);
    let temporary = files::with_suffix(&target, ".tmp");
    let committed =
        write_directory(&temporary, state, &header, parent.and_then(|p| manifest::read_seal(&p.path)))
            .and_then(|()| Ok(files::commit_directory(&temporary, &target)?));
    if committed.is_err() && temporary.exists() {
        // Best effort, to give the space back at once; the next save cleans it as well.
        let _ = files::remove_directory(&temporary);
    }
    committed?;
    remove_surplus(checkpoints_dir, step, keep)?;
    Ok(target)
}

/// Removes what a crash left and puts a set-aside checkpoint back.
fn clean_leftovers(checkpoints_dir: &Path) -> Result<()> {
    for path in directory::leftovers(checkpoints_dir)? {
        files::remove_directory(&path)?;
    }
    for set_aside in directory::list(checkpoints_dir)?.into_iter().filter(|found| found.set_aside) {
        files::recover_directory(&directory::of_step(checkpoints_dir, set_aside.step))?;
    }
    Ok(())
}

fn check_space(target: &Path, header: &Header, config_toml: &str, free_bytes: u64) -> Result<()> {
    // A tensor's record in the manifest, with its name, shape and hash, takes about 500 bytes.
    let manifest_bytes = config_toml.len() as u64 + 1024 * (1 + header.entries.len() as u64);
    let needed_bytes = header.file_bytes() + manifest_bytes;
    if needed_bytes <= free_bytes {
        return Ok(());
    }
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let needs =
        format!("it needs {:.1} MiB, {:.1} MiB are free", mebibytes(needed_bytes), mebibytes(free_bytes));
    Err(CheckpointError::Io(FileError {
        path: target.to_owned(),
        what: "save the checkpoint".to_owned(),
        source: io::Error::new(io::ErrorKind::StorageFull, needs),
    }))
}

fn write_directory<S: Source>(
    temporary: &Path,
    state: &State<S>,
    header: &Header,
    parent: Option<String>,
) -> Result<(), S::Error> {
    files::create_directory(temporary)?;
    let mut shard = DurableFile::create(&temporary.join(SHARD_FILE))?;
    let written = safetensors::write_hashed(&mut shard, header, &state.tensors)?;
    shard.sync()?;
    let path = temporary.join(manifest::FILE_NAME);
    let manifest = describe(state, header, &written, parent);
    let sealed = files::attempt("describe the checkpoint in", &path, || Ok(manifest.to_sealed_bytes()?))?;
    let mut file = DurableFile::create(&path)?;
    file.write(&sealed)?;
    Ok(file.sync()?)
}

fn describe<T>(
    state: &State<T>,
    header: &Header,
    written: &safetensors::Written,
    parent: Option<String>,
) -> Manifest {
    let mut tensors: Vec<_> = header.entries.iter().zip(&written.tensor_blake3).collect();
    tensors.sort_by_key(|(entry, _)| entry.index);
    let record = |(entry, blake3): (&safetensors::Entry, &blake3::Hash)| TensorRecord {
        name: entry.name.clone(),
        dtype: entry.stored.name().to_owned(),
        shape: entry.shape.clone(),
        shard: SHARD_FILE.to_owned(),
        offset: header.data_start + entry.start,
        bytes: entry.bytes,
        blake3: blake3.to_hex().to_string(),
    };
    Manifest {
        format: FORMAT,
        progress: state.progress,
        wattle_version: env!("CARGO_PKG_VERSION").to_owned(),
        parent,
        config_blake3: blake3::hash(state.config_toml.as_bytes()).to_hex().to_string(),
        config_toml: state.config_toml.clone(),
        extra: state.extra.clone(),
        shards: vec![Shard {
            file: SHARD_FILE.to_owned(),
            bytes: header.file_bytes(),
            blake3: written.blake3.to_hex().to_string(),
        }],
        tensors: tensors.into_iter().map(record).collect(),
    }
}

/// Removes the checkpoints of later steps than `step`.
///
/// # Errors
/// [`CheckpointError::Io`].
pub fn remove_after(checkpoints_dir: &Path, step: u64) -> Result<()> {
    for later in directory::list(checkpoints_dir)?.into_iter().filter(|found| found.step > step) {
        files::remove_directory(&later.path)?;
    }
    Ok(())
}

/// Removes the checkpoints of later steps, then those beyond the newest `keep`.
fn remove_surplus(checkpoints_dir: &Path, newest_step: u64, keep: usize) -> Result<()> {
    remove_after(checkpoints_dir, newest_step)?;
    for surplus in directory::list(checkpoints_dir)?.iter().skip(keep.max(1)) {
        files::remove_directory(&surplus.path)?;
    }
    Ok(())
}
