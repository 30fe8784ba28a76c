//! Reading a model's directory: its configuration, and its weights straight into the parameters.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use wattle_kernels::bf16;

use super::config::HuggingFaceConfig;
use super::layout::{Piece, Place, Target, layout};
use crate::checkpoint::safetensors::{Stored, open_header};
use crate::files;
use crate::interop::error::{InteropError, Result};
use crate::model::{ParameterStore, RoutingState};
use crate::telemetry::message;

const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// No configuration and no index is longer.
const MAX_JSON_BYTES: u64 = 64 << 20;
/// Bytes of a tensor that are read and converted at once.
const CHUNK_BYTES: usize = 1 << 20;
/// As many problems are listed; a wrong family would have thousands.
const MAX_PROBLEMS: usize = 20;

/// Whether a directory is laid out as transformers does.
pub fn is_model(directory: &Path) -> bool {
    directory.join(CONFIG).is_file()
}

/// Reads a directory's config.json.
///
/// # Errors
/// A file that cannot be read, is no JSON, is of an unknown family, or says what cannot be honoured.
pub fn read_config(directory: &Path) -> Result<HuggingFaceConfig> {
    let path = directory.join(CONFIG);
    let bytes = files::read_at_most(&path, MAX_JSON_BYTES)?;
    HuggingFaceConfig::from_json(&String::from_utf8_lossy(&bytes))
        .map_err(|problems| InteropError::Config { path, problems })
}

/// Fills a model's parameters and router biases from a directory's safetensors files, piece by piece, so that no
/// tensor is in memory twice. Every tensor is accounted for before any is read.
///
/// # Errors
/// Missing, further or mis-shaped tensors, all listed; values that are not finite; damaged files; pickled weights.
pub fn load_weights(
    directory: &Path,
    config: &HuggingFaceConfig,
    store: &mut ParameterStore,
    routing: &mut [RoutingState],
) -> Result<()> {
    let mut stored = StoredTensors::open(directory)?;
    let places = layout(config.family, &config.model, config.moe.as_ref(), config.vocab_size);
    let tied = stored.take_tied_head(config);
    stored.check(directory, &places, config.model.num_layers)?;
    for place in &places {
        let values = match &place.ours {
            Target::Parameter(name) => store.master_mut(name).map(|tensor| tensor.data_mut::<f32>()),
            Target::RouterBias(layer) => routing
                .get_mut(*layer)
                .and_then(|state| state.bias.as_mut())
                .map(|bias| bias.data_mut::<f32>()),
        };
        let Some(values) = values else { unreachable!("the model is built from the same configuration") };
        let mut rest = values.map_err(wattle_router::Error::from)?;
        for piece in &place.pieces {
            let (now, later) = rest.split_at_mut(piece.shape.iter().product());
            stored.read(piece, now)?;
            rest = later;
        }
    }
    if let Some(head) = tied {
        stored.check_tied(directory, &head, store)?;
    }
    Ok(store.refresh_compute_copies().map_err(wattle_router::Error::from)?)
}

/// The tensors of all files by name.
struct StoredTensors {
    files: Vec<(PathBuf, File)>,
    tensors: BTreeMap<String, StoredTensor>,
}

#[derive(Clone)]
struct StoredTensor {
    file: usize,
    stored: Stored,
    shape: Vec<usize>,
    start: u64,
}

impl StoredTensors {
    fn open(directory: &Path) -> Result<Self> {
        let mut all = StoredTensors { files: Vec::new(), tensors: BTreeMap::new() };
        for path in weight_files(directory)? {
            let (file, header) = open_header(&path)?;
            for entry in header.entries {
                let tensor = StoredTensor {
                    file: all.files.len(),
                    stored: entry.stored,
                    shape: entry.shape,
                    start: header.data_start + entry.start,
                };
                if all.tensors.insert(entry.name.clone(), tensor).is_some() {
                    let problems = vec![format!("{} stands in two files", entry.name)];
                    return Err(InteropError::Weights { path, problems });
                }
            }
            all.files.push((path, file));
        }
        Ok(all)
    }

    /// The head of a model whose head is the embedding: it may be there, but must then be the same.
    fn take_tied_head(&mut self, config: &HuggingFaceConfig) -> Option<StoredTensor> {
        if config.model.tied_embedding { self.tensors.remove("lm_head.weight") } else { None }
    }

    fn check_tied(&self, directory: &Path, head: &StoredTensor, store: &ParameterStore) -> Result<()> {
        let embedding = store.master_by_name("model.embedding").map(|tensor| tensor.data::<f32>());
        let Some(embedding) = embedding else { unreachable!("every model has an embedding") };
        let embedding = embedding.map_err(wattle_router::Error::from)?;
        let mut values = vec![0.0; embedding.len()];
        let is_same = head.shape.iter().product::<usize>() == embedding.len() && {
            self.read_tensor("lm_head.weight", head, &mut values)?;
            values.iter().zip(embedding).all(|(a, b)| a.to_bits() == b.to_bits())
        };
        if is_same {
            return Ok(());
        }
        let problem = "lm_head.weight differs from the embedding, but config.json has tie_word_embeddings = true; \
                       set it to false if the head is a matrix of its own";
        Err(InteropError::Weights { path: directory.to_owned(), problems: vec![problem.to_owned()] })
    }

    /// Compares what is there with what the model has.
    fn check(&mut self, directory: &Path, places: &[Place], num_layers: usize) -> Result<()> {
        let mut problems = Vec::new();
        let mut wanted = BTreeMap::new();
        for piece in places.iter().flat_map(|place| &place.pieces) {
            wanted.insert(piece.name.as_str(), &piece.shape);
            match self.tensors.get(&piece.name) {
                None => problems.push(format!("{} is missing", piece.name)),
                Some(stored) if stored.shape != piece.shape => problems
                    .push(format!("{} has shape {:?}, expected {:?}", piece.name, stored.shape, piece.shape)),
                Some(_) => {}
            }
        }
        let mut passed_over = 0;
        for name in self.tensors.keys().filter(|name| !wanted.contains_key(name.as_str())) {
            if is_beyond_the_model(name, num_layers) {
                passed_over += 1;
            } else {
                problems.push(format!("{name} is not part of this model"));
            }
        }
        if passed_over > 0 {
            message(format_args!(
                "{passed_over} tensors of multi-token prediction or position tables are not used here"
            ));
        }
        if problems.is_empty() {
            return Ok(());
        }
        if problems.len() > MAX_PROBLEMS {
            let more = problems.len() - MAX_PROBLEMS;
            problems.truncate(MAX_PROBLEMS);
            problems.push(format!("and {more} more"));
        }
        Err(InteropError::Weights { path: directory.to_owned(), problems })
    }

    fn read(&self, piece: &Piece, values: &mut [f32]) -> Result<()> {
        let Some(tensor) = self.tensors.get(&piece.name) else { unreachable!("the layout has been checked") };
        self.read_tensor(&piece.name, tensor, values)
    }

    fn read_tensor(&self, name: &str, tensor: &StoredTensor, values: &mut [f32]) -> Result<()> {
        let (path, file) = &self.files[tensor.file];
        let size = tensor.stored.size_in_bytes();
        let refuse = |problem: String| {
            Err(InteropError::Weights { path: path.clone(), problems: vec![format!("{name} {problem}")] })
        };
        let mut buffer = vec![0; CHUNK_BYTES.min(values.len() * size)];
        let mut at = tensor.start;
        for values in values.chunks_mut(CHUNK_BYTES / size) {
            let bytes = &mut buffer[..values.len() * size];
            files::attempt("read", path, || file.read_exact_at(bytes, at))?;
            at += bytes.len() as u64;
            match tensor.stored {
                Stored::F32 => decode(values, bytes, f32::from_le_bytes),
                Stored::Bf16 => decode(values, bytes, |bytes| bf16::from_le_bytes(bytes).to_f32()),
                Stored::F16 => decode(values, bytes, |bytes| half::f16::from_le_bytes(bytes).to_f32()),
                other => return refuse(format!("holds {}, expected F32, BF16 or F16", other.name())),
            }
            if values.iter().any(|value| !value.is_finite()) {
                return refuse("holds values that are not finite".to_owned());
            }
        }
        Ok(())
    }
}

fn decode<const N: usize>(values: &mut [f32], bytes: &[u8], from_bytes: impl Fn([u8; N]) -> f32) {
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *value = from_bytes(*bytes);
    }
}

/// Tensors that some files carry and no forward pass of the decoder reads: position tables of old versions, and
/// layers of multi-token prediction, which are numbered after the decoder's.
fn is_beyond_the_model(name: &str, num_layers: usize) -> bool {
    let layer =
        name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
    name.ends_with("rotary_emb.inv_freq") || layer.is_some_and(|layer| layer >= num_layers)
}

/// The weight files of a directory: one, or those that the index names.
fn weight_files(directory: &Path) -> Result<Vec<PathBuf>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index = directory.join(INDEX);
    if index.is_file() {
        let bytes = files::read_at_most(&index, MAX_JSON_BYTES)?;
        let refuse = |problem: String| InteropError::Weights { path: index.clone(), problems: vec![problem] };
        let Index { weight_map } = serde_json::from_slice(&bytes)
            .map_err(|error| refuse(format!("is no index of safetensors files: {error}")))?;
        let mut names: Vec<String> = weight_map.into_values().collect();
        names.sort();
        names.dedup();
        return names
            .into_iter()
            .map(|name| match Path::new(&name).file_name() == Some(name.as_ref()) {
                true => Ok(directory.join(name)),
                false => Err(refuse(format!("names {name:?}, expected the plain name of a file"))),
            })
            .collect();
    }
    let single = directory.join(SINGLE);
    if single.is_file() {
        return Ok(vec![single]);
    }
    for pickle in ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth", "model.ckpt"]
    {
        let path = directory.join(pickle);
        if path.is_file() {
            return Err(InteropError::Pickle { path });
        }
    }
    let problems = vec![format!("there is neither {SINGLE} nor {INDEX}")];
    Err(InteropError::Weights { path: directory.to_owned(), problems })
}
