//! Writing a model's directory as transformers reads it.

use std::path::Path;

use serde_json::{Map, Value, json};
use wattle_kernels::{Tensor, bf16};

use super::config::HuggingFaceConfig;
use super::layout::{Piece, Place, Target, layout};
use crate::checkpoint::safetensors::{Header, Stored};
use crate::files;
use crate::interop::error::Result;
use crate::model::{ParameterStore, RoutingState};

/// A larger model is written in several files.
const MAX_FILE_BYTES: u64 = 5_000_000_000;

/// Values that are converted and written at once.
const CHUNK_VALUES: usize = 1 << 16;

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
    is_bias: bool,
}

impl Slice<'_> {
    fn values(&self) -> Result<&[f32]> {
        let len = self.piece.shape.iter().product::<usize>();
        Ok(&self.tensor.data::<f32>().map_err(wattle_router::Error::from)?[self.start..self.start + len])
    }

    /// Selection biases decide between close scores: they stay exact.
    fn stored(&self, weight_type: WeightType) -> Stored {
        if self.is_bias { Stored::F32 } else { weight_type.stored() }
    }

    fn bytes(&self, weight_type: WeightType) -> u64 {
        (self.piece.shape.iter().product::<usize>() * self.stored(weight_type).size_in_bytes()) as u64
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
    for Place { ours, pieces } in layout(config.family, &config.model, config.moe.as_ref(), config.vocab_size)
    {
        let tensor = match &ours {
            Target::Parameter(name) => store.master_by_name(name),
            Target::RouterBias(layer) => routing.get(*layer).and_then(|state| state.bias.as_ref()),
        };
        let Some(tensor) = tensor else { unreachable!("the model is built from the same configuration") };
        let is_bias = matches!(ours, Target::RouterBias(_));
        let mut start = 0;
        for piece in pieces {
            let len: usize = piece.shape.iter().product();
            slices.push(Slice { piece, tensor, start, is_bias });
            start += len;
        }
    }
    let shards = split(slices, weight_type, max_file_bytes);
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
            total_bytes += slice.bytes(weight_type);
        }
        write_shard(&directory.join(&name), shard, weight_type)?;
    }
    if count > 1 {
        let index = json!({ "metadata": { "total_size": total_bytes }, "weight_map": weight_map });
        write_json(&directory.join("model.safetensors.index.json"), &index)?;
    }
    Ok(())
}

/// Whole pieces, in order, in files of at most so many bytes.
fn split(slices: Vec<Slice<'_>>, weight_type: WeightType, max_file_bytes: u64) -> Vec<Vec<Slice<'_>>> {
    let mut shards: Vec<Vec<Slice<'_>>> = vec![Vec::new()];
    let mut used = 0;
    for slice in slices {
        let bytes = slice.bytes(weight_type);
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

fn write_shard(path: &Path, shard: &[Slice<'_>], weight_type: WeightType) -> Result<()> {
    let describe =
        |slice: &Slice<'_>| (slice.piece.name.clone(), slice.stored(weight_type), slice.piece.shape.clone());
    let header = Header::new(shard.iter().map(describe))?;
    files::replace_atomically(path, |file| {
        file.write(&header.to_bytes())?;
        let mut buffer = Vec::new();
        for entry in &header.entries {
            for values in shard[entry.index].values()?.chunks(CHUNK_VALUES) {
                buffer.clear();
                match entry.stored {
                    Stored::Bf16 => {
                        buffer.extend(values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()));
                    }
                    _ => buffer.extend(values.iter().flat_map(|value| value.to_le_bytes())),
                }
                file.write(&buffer)?;
            }
        }
        Ok(())
    })
}
