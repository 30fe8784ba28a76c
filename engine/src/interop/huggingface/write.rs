//! Writing a model's directory as transformers reads it.

use std::path::Path;

use serde_json::{Map, Value, json};
use wattle_kernels::{Tensor, bf16};

use super::config::HuggingFaceConfig;
use super::layout::{Piece, Place, Target, layout};
use crate::checkpoint::safetensors::{self, Source, Stored, Take, encode};
use crate::files;
use crate::interop::error::{InteropError, Result};
use crate::model::{ParameterStore, RoutingState};

/// A larger model is written in several files.
const MAX_FILE_BYTES: u64 = 5_000_000_000;

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum WeightType {
    /// As they are trained: exact.
    F32,
    /// Half the size, rounded.
    Bf16,
}

impl WeightType {
    fn stored(self) -> Stored {
        match self {
            WeightType::F32 => Stored::F32,
            WeightType::Bf16 => Stored::Bf16,
        }
    }

    /// The name in config.json.
    fn dtype_name(self) -> &'static str {
        match self {
            WeightType::F32 => "float32",
            WeightType::Bf16 => "bfloat16",
        }
    }
}

/// Writes config.json, generation_config.json and the weights into `directory`.
///
/// # Errors
/// Files that cannot be written.
pub fn write_model(
    directory: &Path,
    config: &HuggingFaceConfig,
    end_token: Option<u32>,
    store: &ParameterStore,
    routing: &[RoutingState],
    weight_type: WeightType,
) -> Result<()> {
    write_weights(directory, config, store, routing, weight_type, MAX_FILE_BYTES)?;
    let generation = json!({
        "_from_model_config": true,
        "bos_token_id": end_token,
        "eos_token_id": end_token,
    });
    write_json(&directory.join("generation_config.json"), &generation)?;
    // Last: a directory with a config.json is a whole model.
    write_json(&directory.join("config.json"), &config.to_json(end_token, weight_type.dtype_name()))
}

/// Writes a JSON file as people read it.
pub(in crate::interop) fn write_json(path: &Path, value: &Value) -> Result<()> {
    Ok(files::write_atomically(path, format!("{value:#}\n").as_bytes())?)
}

/// A piece and where its values are.
struct Slice<'a> {
    piece: Piece,
    tensor: &'a Tensor,
    start: usize,
    stored: Stored,
}

impl Slice<'_> {
    fn len(&self) -> usize {
        self.piece.shape.iter().product()
    }

    fn num_bytes(&self) -> u64 {
        (self.len() * self.stored.size_in_bytes()) as u64
    }
}

impl Source for Vec<Slice<'_>> {
    type Error = InteropError;

    fn describe(&self) -> Vec<(String, Stored, Vec<usize>)> {
        self.iter().map(|slice| (slice.piece.name.clone(), slice.stored, slice.piece.shape.clone())).collect()
    }

    fn give(&self, index: usize, take: &mut Take<'_, InteropError>) -> Result<()> {
        let slice = &self[index];
        let values = slice.tensor.data::<f32>().map_err(wattle_router::Error::from)?;
        let values = &values[slice.start..slice.start + slice.len()];
        match slice.stored {
            Stored::Bf16 => encode(values, |value| bf16::from_f32(value).to_le_bytes(), take),
            _ => encode(values, f32::to_le_bytes, take),
        }
    }
}

fn write_weights(
    directory: &Path,
    config: &HuggingFaceConfig,
    store: &ParameterStore,
    routing: &[RoutingState],
    weight_type: WeightType,
    max_file_bytes: u64,
) -> Result<()> {
    let mut slices = Vec::new();
    let places = layout(config.family, &config.model, config.moe.as_ref(), config.vocab_size);
    for Place { ours, pieces, .. } in places {
        let tensor = match &ours {
            Target::Parameter(name) => store.master_by_name(name),
            Target::RouterBias(layer) => routing.get(*layer).and_then(|state| state.bias.as_ref()),
        };
        let Some(tensor) = tensor else { unreachable!("the model is built from the same configuration") };
        let stored = match ours {
            Target::Parameter(_) => weight_type.stored(),
            // Selection biases decide between close scores: they stay exact.
            Target::RouterBias(_) => Stored::F32,
        };
        let mut start = 0;
        for piece in pieces {
            let len: usize = piece.shape.iter().product();
            slices.push(Slice { piece, tensor, start, stored });
            start += len;
        }
    }
    let shards = split(slices, max_file_bytes);
    let count = shards.len();
    let name_of = |number: usize| match count {
        1 => "model.safetensors".to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
    };
    let mut weight_map = Map::new();
    let mut total_bytes = 0;
    for (number, shard) in shards.iter().enumerate() {
        let name = name_of(number);
        for slice in shard {
            weight_map.insert(slice.piece.name.clone(), json!(name));
            total_bytes += slice.num_bytes();
        }
        safetensors::write(&directory.join(&name), shard)?;
    }
    if count > 1 {
        let index = json!({ "metadata": { "total_size": total_bytes }, "weight_map": weight_map });
        write_json(&directory.join("model.safetensors.index.json"), &index)?;
    }
    Ok(())
}

/// Whole pieces, in order, in files of at most so many bytes.
fn split(slices: Vec<Slice<'_>>, max_file_bytes: u64) -> Vec<Vec<Slice<'_>>> {
    let mut shards: Vec<Vec<Slice<'_>>> = vec![Vec::new()];
    let mut used = 0;
    for slice in slices {
        let bytes = slice.num_bytes();
        if used > 0 && used + bytes > max_file_bytes {
            shards.push(Vec::new());
            used = 0;
        }
        used += bytes;
        // There is always one: the list starts with an empty shard.
        if let Some(shard) = shards.last_mut() {
            shard.push(slice);
        }
    }
    shards
}
