//! Training: one optimizer step (`learner`), a run from start to end (`session`), and its directory.

pub mod config;
mod error;
mod footprint;
mod learner;
mod resume;
mod run_directory;
mod session;
mod setup;
mod signals;
mod snapshot;
mod summary;

use std::error::Error;
use std::path::PathBuf;

pub use error::TrainError;
pub use footprint::Footprint;
pub use learner::{Evaluation, Learner, StepReport, evaluate, flops_per_token};
pub use resume::Resume;
pub use run_directory::RunDirectory;
pub use session::{Ended, Outcome, train};
pub(crate) use snapshot::{is_of_model, restore_model, router_bias_name};

/// What the command line adds to a configuration.
#[derive(Clone, Debug)]
pub struct Options {
    /// The run's directory, instead of a new one.
    pub run_directory: Option<PathBuf>,
    /// Which run to continue.
    pub resume: Resume,
    /// Stop after this many steps in all.
    pub max_steps: Option<u64>,
    /// No progress on stderr.
    pub quiet: bool,
}

/// Sets the number of CPU threads for the whole process, once; 0 takes every core the process may use.
///
/// # Errors
/// When the system refuses the threads.
pub fn start_threads(num_threads: usize) -> Result<(), TrainError> {
    match rayon::ThreadPoolBuilder::new().num_threads(num_threads).build_global() {
        // Only a refused thread has a cause. Without one the pool is there already: a second run in one process keeps
        // that of the first, and the result does not depend on it.
        Err(error) if error.source().is_some() => {
            Err(TrainError::System { action: "start the CPU threads", source: std::io::Error::other(error) })
        }
        _ => Ok(()),
    }
}
