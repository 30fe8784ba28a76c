//! What can be wrong with the text a run is given, with where it is and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::exit;

/// The result of reading, tokenising and batching text.
pub type Result<T> = std::result::Result<T, Error>;

/// Data that cannot be trained on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory cannot be read or written.
    #[error(
        "cannot {action} {}: {source}; check that the path exists and that this user may {action} it",
        path.display()
    )]
    Io {
        /// "read" or "write".
        action: &'static str,
        /// Which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No text at all where some was named.
    #[error("no data: {what}; {remedy}")]
    NoData {
        /// What was looked at and found empty.
        what: String,
        /// What the user can do.
        remedy: &'static str,
    },
    /// A file that was to be read as text is none.
    #[error(
        "{} (byte {offset}): {found}, expected UTF-8 text; name only text files (.jsonl, .parquet, \
         or UTF-8 text, each but .parquet also as .gz or .zst)", path.display()
    )]
    NotText {
        /// Which file.
        path: PathBuf,
        /// How many good bytes stand before.
        offset: usize,
        /// What stands there.
        found: String,
    },
    /// A file holds something other than what its kind promises.
    #[error("{} ({place}): {problem}; {remedy}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// Where in the file: a byte offset, a line, a row group.
        place: String,
        /// What stands there and what was expected.
        problem: String,
        /// What the user can do.
        remedy: &'static str,
    },
    /// A tokenizer cannot be made, loaded or used.
    #[error("tokenizer: {what}: {problem}; {remedy}")]
    Tokenizer {
        /// The file, or the setting.
        what: String,
        /// What is wrong with it and what was expected.
        problem: String,
        /// What the user can do.
        remedy: &'static str,
    },
    /// Fewer tokens than one sample needs.
    #[error(
        "the training text has {num_tokens} tokens, but one sample of data.sequence_length = {sequence_length} \
         needs {needed}; give more text or a smaller sequence_length", needed = sequence_length + 1
    )]
    TooShort {
        /// Tokens there are.
        num_tokens: usize,
        /// Tokens a sample asks for, without its last target.
        sequence_length: usize,
    },
    /// More tokens than a model was trained to see at once.
    #[error(
        "{num_tokens} token ids, expected at most {max_positions}, the model's sequence length; give fewer"
    )]
    TooLong {
        /// Tokens that were given.
        num_tokens: usize,
        /// Tokens that the model sees.
        max_positions: usize,
    },
    /// A token id that a model's vocabulary has not.
    #[error("token id {id}, expected below {vocab_size}, the size of the model's vocabulary; correct the id")]
    UnknownId {
        /// The id.
        id: u32,
        /// Number of ids there are.
        vocab_size: usize,
    },
    /// The same file would be trained on and evaluated on.
    #[error(
        "{} is named by data.validation and by data.train; remove it from one of them, \
         a loss on text that was trained on says nothing", path.display()
    )]
    Overlap {
        /// The file in both lists.
        path: PathBuf,
    },
}

impl Error {
    /// The exit code of a program that stops because of this: 65 bad data, 74 input/output, 77 not permitted.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                exit::NOT_PERMITTED
            }
            Error::Io { .. } => exit::INPUT_OUTPUT,
            _ => exit::BAD_DATA,
        }
    }

    /// A failed read of `path`.
    pub(crate) fn read(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Error::Io { action: "read", path: path.to_owned(), source }
    }
}
