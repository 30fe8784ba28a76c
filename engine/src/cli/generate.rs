//! `wattle generate`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use crate::cli::{exit, print};
use crate::data::StreamDecoder;
use crate::interop::LoadedModel;
use crate::model::{Sampling, generate};
use crate::train::start_threads;

/// Flags of `wattle generate`.
#[derive(Debug, Args)]
#[command(after_help = "Example: wattle generate runs/quickstart-20261124-120000 --prompt 'fn main() {'")]
pub struct Arguments {
    /// A run directory (its newest valid checkpoint) or a checkpoint directory
    model: PathBuf,
    /// The text to continue
    #[arg(long, required_unless_present = "ids")]
    prompt: Option<String>,
    /// Token ids to continue, in place of a text; prints the ids that follow
    #[arg(long, value_delimiter = ',', conflicts_with = "prompt")]
    ids: Vec<u32>,
    /// Tokens to generate at most
    #[arg(long, default_value_t = 200)]
    max_tokens: usize,
    /// Divides the logits; 0 takes the likeliest token always
    #[arg(long, default_value_t = 0.8, allow_negative_numbers = true, value_parser = temperature)]
    temperature: f64,
    /// Only the K likeliest tokens; 0 for no such limit
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Only the likeliest tokens whose probabilities reach P
    #[arg(long, value_name = "P", default_value_t = 0.95, allow_negative_numbers = true, value_parser = top_p)]
    top_p: f64,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print one JSON object at the end instead of the text
    #[arg(long)]
    json: bool,
}

/// Continues the prompt.
pub fn run(arguments: &Arguments) -> Result<u8> {
    start_threads(0)?;
    let mut model = LoadedModel::open(&arguments.model)?;
    let sampling = Sampling {
        max_tokens: arguments.max_tokens,
        temperature: arguments.temperature,
        top_k: arguments.top_k,
        top_p: arguments.top_p,
        seed: arguments.seed,
    };
    let Some(prompt) = &arguments.prompt else { return continue_ids(&mut model, arguments, &sampling) };
    let tokenizer = model.tokenizer()?.clone();
    let boundary = tokenizer.boundary_id();
    let ids = model.prompt_ids(prompt)?;
    let mut stream = StreamDecoder::new(&tokenizer);
    let mut generated = Vec::new();
    let mut text = String::new();
    let mut written: Result<()> = Ok(());
    let max_positions = model.max_positions;
    generate(
        &model.decoder,
        &mut model.store,
        &mut model.routing,
        &ids,
        max_positions,
        &sampling,
        |token| {
            if token == boundary {
                return false;
            }
            generated.push(token);
            written = stream.push(token).map_err(Into::into).and_then(|piece| {
                text.push_str(&piece);
                if arguments.json { Ok(()) } else { print(&piece) }
            });
            written.is_ok()
        },
    )?;
    written?;
    let rest = stream.finish()?;
    if arguments.json {
        text.push_str(&rest);
        let result = json!({ "prompt": prompt, "text": text, "tokens": generated });
        print(&format!("{result}\n"))?;
    } else {
        print(&format!("{rest}\n"))?;
    }
    Ok(exit::DONE)
}

/// Continues token ids by token ids: for models without a tokenizer, and for comparing with other programs.
fn continue_ids(model: &mut LoadedModel, arguments: &Arguments, sampling: &Sampling) -> Result<u8> {
    model.check_ids(&arguments.ids)?;
    let mut generated = Vec::new();
    let LoadedModel { decoder, store, routing, max_positions, .. } = model;
    generate(decoder, store, routing, &arguments.ids, *max_positions, sampling, |token| {
        generated.push(token);
        true
    })?;
    if arguments.json {
        print(&format!("{}\n", json!({ "ids": arguments.ids, "tokens": generated })))?;
    } else {
        let ids: Vec<String> = generated.iter().map(u32::to_string).collect();
        print(&format!("{}\n", ids.join(",")))?;
    }
    Ok(exit::DONE)
}

fn temperature(text: &str) -> Result<f64, String> {
    number(text, |x| x >= 0.0, "0 or more")
}

fn top_p(text: &str) -> Result<f64, String> {
    number(text, |p| p > 0.0 && p <= 1.0, "above 0 and at most 1")
}

fn number(text: &str, accept: fn(f64) -> bool, expected: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && accept(value) => Ok(value),
        _ => Err(format!("expected a number, {expected}")),
    }
}
