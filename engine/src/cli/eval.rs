//! `wattle eval`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use crate::cli::{exit, print};
use crate::data::evaluation_batches;
use crate::interop::LoadedModel;
use crate::train::{evaluate, start_threads};

/// Flags of `wattle eval`.
#[derive(Debug, Args)]
#[command(after_help = "Example: wattle eval runs/quickstart-20261124-120000 --data book.txt --json")]
pub struct Arguments {
    /// A run directory (its newest valid checkpoint) or a checkpoint directory
    model: PathBuf,
    /// Files, directories or patterns of text
    #[arg(long, required = true, num_args = 1..)]
    data: Vec<String>,
    /// Sequences per batch
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Measures the loss.
pub fn run(arguments: &Arguments) -> Result<u8> {
    start_threads(0)?;
    let mut model = LoadedModel::open(&arguments.model)?;
    let stream = model.read(&arguments.data)?;
    let batches = evaluation_batches(&stream, model.max_positions, usize::from(arguments.batch))?;
    let result = evaluate(&model.decoder, &mut model.store, &mut model.routing, batches)?;
    let bits_per_byte =
        result.loss * result.num_tokens as f64 / stream.num_bytes() as f64 / std::f64::consts::LN_2;
    let perplexity = result.loss.exp();
    let text = match arguments.json {
        true => json!({
            "loss": result.loss,
            "perplexity": perplexity,
            "bits_per_byte": bits_per_byte,
            "tokens": result.num_tokens,
        })
        .to_string(),
        false => format!(
            "loss          {:.4} nats/token\nperplexity    {perplexity:.3}\nbits per byte {bits_per_byte:.4}\n\
             tokens        {}",
            result.loss, result.num_tokens
        ),
    };
    print(&format!("{text}\n"))?;
    Ok(exit::DONE)
}
