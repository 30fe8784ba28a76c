//! Exit codes, and which error means which.

use crate::checkpoint::CheckpointError;
use crate::config::ConfigError;
use crate::data;
use crate::files::FileError;
use crate::train::TrainError;

/// Done.
pub const DONE: u8 = 0;
/// A check said no.
pub const CHECK_FAILED: u8 = 1;
/// Wrong usage.
pub const USAGE: u8 = 2;
/// An internal error.
pub const INTERNAL: u8 = 70;
/// Input or output failed.
pub const INPUT_OUTPUT: u8 = 74;
/// Stopped with a durable checkpoint: run the same command again.
pub const REQUEUE: u8 = 75;
/// Not permitted.
pub const NOT_PERMITTED: u8 = 77;
/// Bad configuration.
pub const BAD_CONFIGURATION: u8 = 78;

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

/// The exit code of an error of the energy monitor or ledger.
pub fn code_of_energy(error: &wattle_energy::Error) -> u8 {
    match error {
        wattle_energy::Error::Location { .. }
        | wattle_energy::Error::Setting { .. }
        | wattle_energy::Error::Case { .. } => BAD_CONFIGURATION,
        _ => INPUT_OUTPUT,
    }
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
