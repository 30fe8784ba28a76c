//! `wattle export`: a model for Hugging Face transformers.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::cli::{exit, print};
use crate::interop::huggingface::WeightType;
use crate::interop::{LoadedModel, export};
use crate::telemetry::message;

/// Flags of `wattle export`.
#[derive(Debug, Args)]
#[command(after_help = "Example: wattle export runs/quickstart-20261124-120000 --output my-model")]
pub struct Arguments {
    /// A run directory (its newest valid checkpoint), a checkpoint directory, or a Hugging Face directory
    model: PathBuf,
    /// The directory to write
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// How weights are stored
    #[arg(long, value_enum, default_value_t = WeightType::F32)]
    dtype: WeightType,
}

/// Writes the directory and prints its path.
pub fn run(arguments: &Arguments) -> Result<u8> {
    let model = LoadedModel::open(&arguments.model)?;
    let family = export(&model, &arguments.output, arguments.dtype)?;
    message(format_args!("written as {}", family.architecture()));
    print(&format!("{}\n", arguments.output.display()))?;
    Ok(exit::DONE)
}
