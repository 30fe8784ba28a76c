//! Which error means which exit code.

use crate::checkpoint::CheckpointError;
use crate::config::ConfigError;
use crate::data;
pub use crate::exit::*;
use crate::files::FileError;
use crate::interop::InteropError;
use crate::train::TrainError;

/// The exit code of an error, by the first cause that has one.
pub fn code_of(error: &anyhow::Error) -> u8 {
    error.chain().find_map(code_of_cause).unwrap_or(INTERNAL)
}

fn code_of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if let Some(error) = cause.downcast_ref::<ConfigError>() {
        return Some(error.exit_code());
    }
    if let Some(error) = cause.downcast_ref::<data::Error>() {
        return Some(error.exit_code());
    }
    if let Some(error) = cause.downcast_ref::<CheckpointError>() {
        return Some(error.exit_code());
    }
    if let Some(error) = cause.downcast_ref::<FileError>() {
        return Some(error.exit_code());
    }
    if let Some(error) = cause.downcast_ref::<InteropError>() {
        return Some(error.exit_code());
    }
    if let Some(error) = cause.downcast_ref::<TrainError>() {
        return error.exit_code();
    }
    if let Some(error) = cause.downcast_ref::<wattle_energy::Error>() {
        return Some(code_of_energy(error));
    }
    if let Some(error) = cause.downcast_ref::<std::io::Error>() {
        return Some(match error.kind() {
            std::io::ErrorKind::PermissionDenied => NOT_PERMITTED,
            _ => INPUT_OUTPUT,
        });
    }
    None
}

/// The message of an error and its causes, each said once: many a message holds its cause already.
pub fn describe(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.is_empty() {
        true => cause,
        false if text.contains(&cause) => text,
        false => format!("{text}: {cause}"),
    })
}

/// Whether the reader of our output went away, as `head` does: no error.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    })
}
