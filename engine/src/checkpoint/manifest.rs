//! `manifest.json`: what a checkpoint is made of, sealed by its own BLAKE3.
//!
//! The last key, `blake3`, is the hash of all bytes before it, so that a flipped digit in a number is found like a
//! flipped bit in a tensor. The seal stays the same in all format versions: a damaged manifest is never taken for
//! one of another version.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::{CheckpointError, Result};
use super::state::Progress;
use crate::files;

/// The file's name inside a checkpoint directory.
pub(super) const FILE_NAME: &str = "manifest.json";

/// The version this program writes and reads.
pub(super) const FORMAT: u32 = 1;

/// A longer manifest is refused unread.
const MAX_BYTES: u64 = 100_000_000;

const SEAL_START: &str = ",\n  \"blake3\": \"";
const SEAL_END: &str = "\"\n}\n";
const HASH_HEX_BYTES: usize = 64;

/// The manifest, without its seal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// Format version.
    pub(super) format: u32,
    /// `step`, `tokens` and the other counters, as keys of the manifest itself.
    #[serde(flatten)]
    pub(super) progress: Progress,
    /// The program that wrote it.
    pub(super) wattle_version: String,
    /// The seal of the checkpoint before this one in the same directory.
    pub(super) parent: Option<String>,
    /// BLAKE3 of `config_toml`.
    pub(super) config_blake3: String,
    /// The resolved configuration.
    pub(super) config_toml: String,
    /// Small further state.
    pub(super) extra: serde_json::Map<String, serde_json::Value>,
    /// The files that hold the tensors.
    pub(super) shards: Vec<Shard>,
    /// The tensors in the order of the state, which is not their order in the file.
    pub(super) tensors: Vec<TensorRecord>,
}

/// One file of tensors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shard {
    /// Its name inside the checkpoint directory.
    pub(super) file: String,
    /// Its size.
    pub(super) bytes: u64,
    /// BLAKE3 of the whole file.
    pub(super) blake3: String,
}

/// Where a tensor lies and what its bytes must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TensorRecord {
    /// Its name.
    pub(super) name: String,
    /// Its element type, in the file format's spelling.
    pub(super) dtype: String,
    /// Its shape.
    pub(super) shape: Vec<usize>,
    /// The file that holds it.
    pub(super) shard: String,
    /// Where it starts in that file.
    pub(super) offset: u64,
    /// Its size.
    pub(super) bytes: u64,
    /// BLAKE3 of its bytes.
    pub(super) blake3: String,
}

impl Manifest {
    /// The file's content.
    pub(super) fn to_sealed_bytes(&self) -> serde_json::Result<Vec<u8>> {
        let json = serde_json::to_string_pretty(self)?;
        let body = &json[..json.len() - "\n}".len()];
        Ok([body, &seal(&blake3::hash(body.as_bytes()).to_hex())].concat().into_bytes())
    }

    /// Reads and checks the manifest of a checkpoint directory.
    pub(super) fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(FILE_NAME);
        let bytes = files::read_at_most(&path, MAX_BYTES)?;
        let corrupt = |what: String| CheckpointError::Corrupt { path: path.clone(), tensor: None, what };
        check_seal(&bytes).map_err(&corrupt)?;
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let parse_error =
            |error: serde_json::Error| corrupt(format!("it is sealed, but not a manifest: {error}"));
        let Version { format } = serde_json::from_slice(&bytes).map_err(parse_error)?;
        if format != FORMAT {
            let what = format!("it has format {format}, expected {FORMAT}; use the version that wrote it");
            return Err(CheckpointError::Unsupported { path, what });
        }
        serde_json::from_slice(&bytes).map_err(parse_error)
    }
}

/// The seal of a sound manifest file, to be named as another's parent.
pub(super) fn read_seal(directory: &Path) -> Option<String> {
    let bytes = files::read_at_most(&directory.join(FILE_NAME), MAX_BYTES).ok()?;
    check_seal(&bytes).ok()
}

fn seal(hash: &str) -> String {
    format!("{SEAL_START}{hash}{SEAL_END}")
}

/// Gives the hash when it is the right one.
fn check_seal(bytes: &[u8]) -> std::result::Result<String, String> {
    let seal_bytes = SEAL_START.len() + HASH_HEX_BYTES + SEAL_END.len();
    let body_bytes = bytes.len().checked_sub(seal_bytes).ok_or("it is cut off: its seal is missing")?;
    let (body, found) = bytes.split_at(body_bytes);
    let hash = blake3::hash(body).to_hex().to_string();
    if seal(&hash).as_bytes() != found {
        return Err("its bytes do not match the BLAKE3 at its end".to_owned());
    }
    Ok(hash)
}
