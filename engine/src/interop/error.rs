//! Why a model of another program cannot be read, or one of ours not be written for it.

use std::path::PathBuf;

use crate::checkpoint::CheckpointError;
use crate::data;
use crate::exit;
use crate::files::FileError;

/// The result of reading and writing models of other programs.
pub type Result<T> = std::result::Result<T, InteropError>;

/// A model cannot cross over.
#[derive(Debug, thiserror::Error)]
pub enum InteropError {
    /// A config.json that is none, or says what cannot be honoured.
    #[error("{}: {}", path.display(), problems.join("; "))]
    Config {
        /// The file.
        path: PathBuf,
        /// Each problem with its key.
        problems: Vec<String>,
    },
    /// Weights that are missing, too many, mis-shaped or no numbers.
    #[error("{}: {}; the model is not taken", path.display(), problems.join("; "))]
    Weights {
        /// The directory or file.
        path: PathBuf,
        /// Each problem with its tensor.
        problems: Vec<String>,
    },
    /// A directory without safetensors but with pickled weights, which could run code when opened.
    #[error(
        "{} is a pickle file, which can run any program when it is opened: it is not opened here; convert it to \
         safetensors where you trust it (save_pretrained does so)", path.display()
    )]
    Pickle {
        /// The file.
        path: PathBuf,
    },
    /// A model that no family can say.
    #[error("no family of transformers can express this model: {}", reasons.join("; "))]
    Inexpressible {
        /// Why each family cannot.
        reasons: Vec<String>,
    },
    /// A damaged safetensors file.
    #[error(transparent)]
    Container(#[from] CheckpointError),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The tokenizer cannot be read.
    #[error(transparent)]
    Tokenizer(#[from] data::Error),
    /// The energy ledger of the model's training cannot be read.
    #[error(transparent)]
    Energy(#[from] wattle_energy::Error),
    /// The model cannot be built.
    #[error(transparent)]
    Model(#[from] wattle_router::Error),
}

impl InteropError {
    /// The exit code of a program that stops because of this.
    pub fn exit_code(&self) -> u8 {
        match self {
            InteropError::Config { .. } | InteropError::Inexpressible { .. } => exit::BAD_CONFIGURATION,
            InteropError::Weights { .. } | InteropError::Pickle { .. } => exit::BAD_DATA,
            InteropError::Container(error) => error.exit_code(),
            InteropError::File(error) => error.exit_code(),
            InteropError::Tokenizer(error) => error.exit_code(),
            InteropError::Energy(error) => exit::code_of_energy(error),
            InteropError::Model(_) => exit::INTERNAL,
        }
    }
}
