//! `wattle import`: a model of Hugging Face transformers, to go on training it here.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::cli::{exit, print};
use crate::interop::import;
use crate::telemetry::message;

/// Flags of `wattle import`.
#[derive(Debug, Args)]
#[command(after_help = "Example: wattle import OLMoE-1B-7B-0924 --output runs/olmoe")]
pub struct Arguments {
    /// A directory with config.json, safetensors and tokenizer.json
    model: PathBuf,
    /// The run directory to write
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

/// Writes the run directory and prints its path.
pub fn run(arguments: &Arguments) -> Result<u8> {
    import(&arguments.model, &arguments.output)?;
    let output = arguments.output.display();
    message(format_args!(
        "to train it: copy {output}/config.toml, set data.train and the rest in the copy, and run wattle train COPY \
         --resume {output} --run-dir NEW"
    ));
    print(&format!("{output}\n"))?;
    Ok(exit::DONE)
}
