//! What can go wrong with a checkpoint.

use std::path::PathBuf;

use crate::exit;
use crate::files::FileError;

/// The module's result.
pub type Result<T, E = CheckpointError> = std::result::Result<T, E>;

/// A checkpoint could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The operating system refused a file operation.
    #[error(transparent)]
    Io(#[from] FileError),
    /// Bytes are not what was written, or a file breaks its format.
    #[error("{} is damaged{}: {what}; restore it from a copy or use another", path.display(), in_tensor(tensor))]
    Corrupt {
        /// The file, or the directory when no single file is to blame.
        path: PathBuf,
        /// The tensor, where one can be named.
        tensor: Option<String>,
        /// What was found and what was expected.
        what: String,
    },
    /// There is no checkpoint at the path.
    #[error("no checkpoint at {}: {remedy}", path.display())]
    NotFound {
        /// Where it was looked for.
        path: PathBuf,
        /// What to do.
        remedy: &'static str,
    },
    /// The file is sound, but this program does not read its kind.
    #[error("{} cannot be read by this version of wattle: {what}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it has and what is read.
        what: String,
    },
    /// A tensor does not fit in memory, or the state cannot be stored as it is.
    #[error(transparent)]
    Tensor(#[from] wattle_kernels::Error),
}

impl CheckpointError {
    /// The exit code of a program that stops because of this: 74 input/output, 77 not permitted, 65 bad data,
    /// 70 internal.
    pub fn exit_code(&self) -> u8 {
        match self {
            CheckpointError::Io(error) => error.exit_code(),
            CheckpointError::Corrupt { .. } | CheckpointError::Unsupported { .. } => exit::BAD_DATA,
            CheckpointError::NotFound { .. } => exit::INPUT_OUTPUT,
            CheckpointError::Tensor(_) => exit::INTERNAL,
        }
    }
}

fn in_tensor(tensor: &Option<String>) -> String {
    tensor.as_ref().map(|tensor| format!(" in tensor {tensor}")).unwrap_or_default()
}
