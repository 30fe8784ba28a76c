//! Checkpoints: what a run needs to go on bit-exact, on disk, with a checksum over every byte.
//!
//! ```text
//! checkpoints/step-00000100/rank-0.safetensors   the tensors
//!                           manifest.json        progress, configuration, BLAKE3 of each shard and tensor, and,
//!                                                as its last key, the BLAKE3 of all that precedes it
//! checkpoints/step-00000200.tmp                  being written or removed; readers skip it, the next save cleans it
//! checkpoints/step-00000100.old                  the replaced one, until its successor is in place; readers use it
//! ```
//!
//! `save` commits by renaming a directory whose content is synced; [`newest_valid`] takes the newest checkpoint of
//! which every byte is right and says which newer ones it refused and why.

pub mod config;
mod directory;
mod error;
mod manifest;
mod read;
pub mod safetensors;
mod state;
#[cfg(test)]
mod tests;
mod write;

pub use error::{CheckpointError, Result};
pub use read::{Header, Newest, Rejected, Wanted, load, newest_header, newest_valid};
pub use state::{NamedTensor, Progress, State};
pub use write::remove_after;
pub(crate) use write::save;
