//! `wattle train`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::cli::{exit, print};
use crate::config::Config;
use crate::train::{Ended, Options, Resume};

/// Flags of `wattle train`.
#[derive(Debug, Args)]
#[command(after_help = "Example: wattle train configs/quickstart.toml --set run.max_tokens=1M")]
pub struct Arguments {
    /// The run's configuration, a TOML file
    config: PathBuf,
    /// The run's directory, instead of a new one below run.directory
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Override a key of the configuration; can be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Go on from a checkpoint: auto continues an unfinished run of the same configuration, never starts anew, a
    /// run or checkpoint directory continues that one
    #[arg(long, value_name = "auto|never|PATH", default_value = "auto")]
    resume: String,
    /// Stop, with a checkpoint, after this many steps in all
    #[arg(long, value_name = "N")]
    max_steps: Option<u64>,
    /// No progress on stderr
    #[arg(long, short)]
    quiet: bool,
}

/// Trains.
pub fn run(arguments: &Arguments) -> Result<u8> {
    let resolved = Config::load(&arguments.config, &arguments.sets)?;
    let options = Options {
        run_directory: arguments.run_dir.clone(),
        resume: match arguments.resume.as_str() {
            "auto" => Resume::Auto,
            "never" => Resume::Never,
            path => Resume::From(PathBuf::from(path)),
        },
        max_steps: arguments.max_steps,
        quiet: arguments.quiet,
    };
    let outcome = crate::train::train(&resolved, &options)?;
    print(&format!("{}\n", outcome.run_directory.display()))?;
    Ok(match outcome.ended {
        Ended::Completed | Ended::MaxSteps => exit::DONE,
        Ended::Signalled => exit::REQUEUE,
    })
}
