//! `wattle logits`: the numbers behind a forward pass, for parity checks.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::autograd::Tape;
use crate::checkpoint::{NamedTensor, safetensors};
use crate::cli::exit;
use crate::interop::LoadedModel;
use crate::model::Pass;
use crate::train::start_threads;
use wattle_kernels::Tensor;

/// Flags of `wattle logits`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: wattle logits runs/quickstart-20261124-120000 --ids 1,2,3 --output logits.safetensors"
)]
pub struct Arguments {
    /// A run directory (its newest valid checkpoint) or a checkpoint directory
    model: PathBuf,
    /// Token ids, separated by commas
    #[arg(long, value_delimiter = ',', required = true)]
    ids: Vec<u32>,
    /// The file to write: one f32 tensor `logits` [T, V]
    #[arg(long, value_name = "FILE.safetensors")]
    output: PathBuf,
}

/// Writes the logits.
pub fn run(arguments: &Arguments) -> Result<u8> {
    start_threads(0)?;
    let mut model = LoadedModel::open(&arguments.model)?;
    model.check_ids(&arguments.ids)?;
    let ids: Vec<i32> = arguments.ids.iter().map(|&id| id as i32).collect();
    let ids = Tensor::from_slice(&ids, &[1, ids.len()])?;
    let mut tape = Tape::forward_only(&mut model.store);
    let hidden = model.decoder.forward(&mut tape, &ids, &mut model.routing, Pass::default())?;
    drop(tape);
    let logits = model.decoder.logits(&model.store, &hidden.value)?;
    let logits = logits.reshape(&[arguments.ids.len(), logits.last_dim()])?;
    safetensors::write(&arguments.output, &vec![NamedTensor { name: "logits".to_owned(), tensor: logits }])?;
    Ok(exit::DONE)
}
