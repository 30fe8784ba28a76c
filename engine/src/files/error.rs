//! The error of a file operation: what was tried, on which path, why it failed, and what to do about it.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::PathBuf;

use crate::exit;

/// A file operation failed.
///
/// The text holds the cause and a remedy, so `Error::source` gives nothing: whoever prints the chain of causes
/// says each thing once.
#[derive(Debug)]
pub struct FileError {
    /// The file or directory.
    pub path: PathBuf,
    /// What was tried, as in "cannot *write* PATH".
    pub what: String,
    /// What the operating system said.
    pub source: io::Error,
}

impl FileError {
    /// The exit code of a program that stops because of this: 77 not permitted, 65 bad data, 74 input/output.
    pub fn exit_code(&self) -> u8 {
        match self.source.kind() {
            ErrorKind::PermissionDenied => exit::NOT_PERMITTED,
            ErrorKind::InvalidData => exit::BAD_DATA,
            _ => exit::INPUT_OUTPUT,
        }
    }

    fn remedy(&self) -> Option<&'static str> {
        Some(match self.source.kind() {
            ErrorKind::StorageFull => "free some space or choose a run directory on another disk",
            ErrorKind::QuotaExceeded => "free some of your quota or choose a run directory on another disk",
            ErrorKind::ReadOnlyFilesystem => {
                "the file system is mounted read-only: choose a run directory on a writable one"
            }
            ErrorKind::PermissionDenied => "check the owner and the mode of the path and its directories",
            ErrorKind::AlreadyExists => "a file stands where a directory is needed: choose another path",
            ErrorKind::NotADirectory => "a part of the path is a file: choose another path",
            _ => return None,
        })
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} {}: {}", self.what, self.path.display(), self.source)?;
        match self.remedy() {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for FileError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(errno: i32) -> FileError {
        let source = io::Error::from_raw_os_error(errno);
        FileError { path: "run/x".into(), what: "write".into(), source }
    }

    #[test]
    fn each_common_cause_says_what_to_do_and_has_its_exit_code() {
        for (errno, words, code) in [
            (libc::ENOSPC, "free some space", 74),
            (libc::EDQUOT, "quota", 74),
            (libc::EROFS, "mounted read-only", 74),
            (libc::EACCES, "owner and the mode", 77),
            (libc::EPERM, "owner and the mode", 77),
            (libc::ENOTDIR, "a part of the path is a file", 74),
            (libc::EIO, "cannot write run/x", 74),
        ] {
            let error = error(errno);
            let text = error.to_string();
            assert!(text.starts_with("cannot write run/x: ") && text.contains(words), "{text}");
            assert_eq!(error.exit_code(), code, "{text}");
        }
    }
}
