//! What can end a training run, beside the errors of the rooms below.

use std::path::PathBuf;

use crate::checkpoint::CheckpointError;
use crate::data;
use crate::files::FileError;
use crate::interop::InteropError;
use crate::telemetry::ExporterError;

/// A run could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The data cannot be used.
    #[error(transparent)]
    Data(#[from] data::Error),
    /// A checkpoint cannot be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A model of another program cannot be read.
    #[error(transparent)]
    Interop(#[from] InteropError),
    /// A file of the run directory cannot be written or read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The energy monitor or ledger failed.
    #[error(transparent)]
    Energy(#[from] wattle_energy::Error),
    /// The metrics cannot be served.
    #[error(transparent)]
    Exporter(#[from] ExporterError),
    /// An operation of the model failed.
    #[error(transparent)]
    Model(#[from] wattle_router::Error),
    /// The system refused threads or signal handlers.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The run directory holds a run of another configuration.
    #[error(
        "{} holds a run whose `{key}` differs ({saved} there, {given} here): give the run its own --run-dir, or \
         set the key back", path.display()
    )]
    AnotherRun {
        /// The run directory.
        path: PathBuf,
        /// The first key that differs.
        key: String,
        /// Its value there.
        saved: String,
        /// Its value here.
        given: String,
    },
    /// The text is another than the run has been trained on.
    #[error(
        "the text that data.train names has changed since step {step} of {}: going on would not be the same run; put \
         the text back, or begin anew with --resume never", run.display()
    )]
    TextChanged {
        /// The run directory.
        run: PathBuf,
        /// The step it would have gone on from.
        step: u64,
    },
    /// The run directory already holds a run and resuming was not wanted.
    #[error("{} already holds a run: give another --run-dir, or let --resume auto continue it", path.display())]
    RunExists {
        /// The run directory.
        path: PathBuf,
    },
    /// The directory is something else's.
    #[error(
        "{} has a config.toml and is no run directory: give a --run-dir of its own, the run would overwrite that file",
        path.display()
    )]
    ForeignDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// Another process trains into the run directory.
    #[error("{} is in use by another process: wait for it to end, or give another --run-dir", path.display())]
    RunBusy {
        /// The run directory.
        path: PathBuf,
    },
    /// Too many steps in a row had a loss or gradient that was not finite.
    #[error(
        "stopped at step {step}: {count} steps in a row had a loss or gradient that is not finite; the weights of \
         the last good step are in {}; lower optimizer.learning_rate, lengthen schedule.warmup_tokens, or look at \
         the data near sample {sample}", checkpoint.display()
    )]
    NotFinite {
        /// The last step.
        step: u64,
        /// How many were skipped in a row.
        count: u64,
        /// The last checkpoint.
        checkpoint: PathBuf,
        /// The first sample of the last step.
        sample: u64,
    },
}

impl TrainError {
    /// The exit code where this error itself decides it; none where its cause does.
    pub fn exit_code(&self) -> Option<u8> {
        use crate::exit;
        match self {
            TrainError::AnotherRun { .. }
            | TrainError::RunExists { .. }
            | TrainError::ForeignDirectory { .. }
            | TrainError::RunBusy { .. } => Some(exit::BAD_CONFIGURATION),
            TrainError::TextChanged { .. } => Some(exit::BAD_DATA),
            TrainError::NotFinite { .. } => Some(exit::CHECK_FAILED),
            TrainError::Data(error) => Some(error.exit_code()),
            TrainError::Checkpoint(error) => Some(error.exit_code()),
            TrainError::Interop(error) => Some(error.exit_code()),
            TrainError::File(error) => Some(error.exit_code()),
            TrainError::Energy(error) => Some(exit::code_of_energy(error)),
            TrainError::Exporter(error) => Some(error.exit_code()),
            TrainError::System { .. } => Some(exit::INPUT_OUTPUT),
            TrainError::Model(_) => Some(exit::INTERNAL),
        }
    }
}
