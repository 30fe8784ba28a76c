//! Reading a model's directory: its configuration, and its weights straight to where they are wanted, in the parameters
//! or in a checkpoint.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Deserialize;
use wattle_kernels::bf16;

use super::config::HuggingFaceConfig;
use super::layout::{Place, Target, layout};
use crate::checkpoint::safetensors::{Source, Stored, Take, encode, open_header};
use crate::config::Config;
use crate::data::Tokenizer;
use crate::files;
use crate::interop::error::{InteropError, Result};
use crate::model::config::ModelConfig;
use crate::model::{ParameterStore, RoutingState};
use crate::telemetry::message;
use crate::train::router_bias_name;

const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// No configuration and no index is longer.
const MAX_JSON_BYTES: u64 = 64 << 20;
/// Values of a tensor that are read and converted at once.
const CHUNK_VALUES: usize = 1 << 18;
const EMBEDDING: &str = "model.embed_tokens.weight";
/// Absent where the embedding is the head.
const HEAD: &str = "lm_head.weight";
/// As many problems are listed; a wrong family would have thousands.
const MAX_PROBLEMS: usize = 20;

/// Whether a directory is laid out as transformers does.
pub fn is_model(directory: &Path) -> bool {
    directory.join(CONFIG).is_file()
}

/// A directory of transformers: understood and accounted for, but no weight is read yet.
#[derive(Debug)]
pub struct HuggingFaceModel {
    /// Its config.json.
    pub config: HuggingFaceConfig,
    /// None beside weights that came without one.
    pub tokenizer: Option<Tokenizer>,
    /// Where its weights lie.
    pub weights: Weights,
}

impl HuggingFaceModel {
    /// Opens a directory.
    ///
    /// # Errors
    /// A config.json that cannot be read, is no JSON, is of an unknown family, or says what cannot be honoured; a
    /// tokenizer with more ids than the embedding has rows; and those of [`Weights::open`].
    pub fn open(directory: &Path) -> Result<Self> {
        let path = directory.join(CONFIG);
        let bytes = files::read_at_most(&path, MAX_JSON_BYTES)?;
        let config = HuggingFaceConfig::from_json(&String::from_utf8_lossy(&bytes))
            .map_err(|problems| InteropError::Config { path, problems })?;
        let tokenizer = directory.join("tokenizer.json");
        let tokenizer = if tokenizer.is_file() { Some(Tokenizer::from_file(&tokenizer)?) } else { None };
        if let Some(tokenizer) = &tokenizer {
            tokenizer.check_rows(config.vocab_size)?;
        }
        let weights = Weights::open(directory, &config)?;
        Ok(HuggingFaceModel { config, tokenizer, weights })
    }

    /// The same in the sections `[model]` and `[moe]`; all others as by default.
    pub fn to_config(&self) -> Config {
        let HuggingFaceConfig { model, moe, vocab_size, .. } = &self.config;
        let model = ModelConfig { vocab_size: Some(*vocab_size), ..model.clone() };
        Config { model, moe: moe.clone(), ..Config::default() }
    }
}

/// The weights of a directory: every tensor is accounted for, and none is read yet.
#[derive(Debug)]
pub struct Weights {
    files: Vec<(PathBuf, File)>,
    tensors: BTreeMap<String, StoredTensor>,
    /// Ours in the order of a checkpoint: parameters, then router biases.
    places: Vec<Place>,
}

#[derive(Debug)]
struct StoredTensor {
    file: usize,
    stored: Stored,
    shape: Vec<usize>,
    start: u64,
}

impl Weights {
    /// Opens a directory's safetensors files and compares what is there with what the model has.
    ///
    /// # Errors
    /// Missing, further or mis-shaped tensors, all listed; damaged files; pickled weights.
    pub fn open(directory: &Path, config: &HuggingFaceConfig) -> Result<Self> {
        let mut places = layout(config.family, &config.model, config.moe.as_ref(), config.vocab_size);
        places.sort_by_key(|place| matches!(place.ours, Target::RouterBias(_)));
        let mut weights = Weights { files: Vec::new(), tensors: BTreeMap::new(), places };
        for path in weight_files(directory)? {
            let (file, header) = open_header(&path)?;
            for entry in header.entries {
                let tensor = StoredTensor {
                    file: weights.files.len(),
                    stored: entry.stored,
                    shape: entry.shape,
                    start: header.data_start + entry.start,
                };
                if weights.tensors.insert(entry.name.clone(), tensor).is_some() {
                    let problems = vec![format!("{} stands in two files", entry.name)];
                    return Err(InteropError::Weights { path, problems });
                }
            }
            weights.files.push((path, file));
        }
        // The head of a model whose head is the embedding may be there, but must then be the same.
        let tied = config.model.tied_embedding && weights.tensors.contains_key(HEAD);
        weights.check(directory, tied.then(|| vec![config.vocab_size, config.model.d_model]), config)?;
        if tied {
            weights.check_tied(directory)?;
        }
        Ok(weights)
    }

    /// Fills a model's parameters and router biases, on all threads: most of the time goes into the first touch of the
    /// memory. No tensor is in memory twice.
    ///
    /// # Errors
    /// Values that are not finite; files that cannot be read.
    pub fn load(&self, store: &mut ParameterStore, routing: &mut [RoutingState]) -> Result<()> {
        for place in &self.places {
            let values = match &place.ours {
                Target::Parameter(name) => store.master_mut(name).map(|tensor| tensor.data_mut::<f32>()),
                Target::RouterBias(layer) => routing
                    .get_mut(*layer)
                    .and_then(|state| state.bias.as_mut())
                    .map(|bias| bias.data_mut::<f32>()),
            };
            let Some(values) = values else { unreachable!("the model is built from the same configuration") };
            let mut rest = values.map_err(wattle_router::Error::from)?;
            let mut pieces = Vec::with_capacity(place.pieces.len());
            for piece in &place.pieces {
                let (now, later) = rest.split_at_mut(piece.shape.iter().product());
                pieces.push((&piece.name, now));
                rest = later;
            }
            pieces.into_par_iter().try_for_each(|(name, values)| self.values(name).read(values))?;
        }
        Ok(store.refresh_compute_copies().map_err(wattle_router::Error::from)?)
    }

    /// Refuses what is missing, too much or another shape; `tied_head` is that of a head beside the same embedding.
    fn check(
        &self,
        directory: &Path,
        tied_head: Option<Vec<usize>>,
        config: &HuggingFaceConfig,
    ) -> Result<()> {
        let mut problems = Vec::new();
        let mut wanted = BTreeMap::new();
        let pieces = self.places.iter().flat_map(|place| &place.pieces);
        let pieces = pieces.map(|piece| (piece.name.as_str(), &piece.shape));
        for (name, shape) in pieces.chain(tied_head.iter().map(|shape| (HEAD, shape))) {
            wanted.insert(name, shape);
            match self.tensors.get(name) {
                None => problems.push(format!("{name} is missing")),
                Some(tensor) if tensor.shape != *shape => {
                    problems.push(format!("{name} has shape {:?}, expected {shape:?}", tensor.shape));
                }
                Some(tensor) if !matches!(tensor.stored, Stored::F32 | Stored::Bf16 | Stored::F16) => {
                    let found = tensor.stored.name();
                    problems.push(format!("{name} holds {found}, expected F32, BF16 or F16"));
                }
                Some(_) => {}
            }
        }
        let mut passed_over = 0;
        for name in self.tensors.keys().filter(|name| !wanted.contains_key(name.as_str())) {
            if is_beyond_the_model(name, config.model.num_layers) {
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

    fn check_tied(&self, directory: &Path) -> Result<()> {
        let (mut head, mut embedding) = (self.values(HEAD), self.values(EMBEDDING));
        let mut chunks = [vec![0.0; CHUNK_VALUES], vec![0.0; CHUNK_VALUES]];
        while head.left > 0 {
            let [a, b] = chunks.each_mut().map(|chunk| &mut chunk[..CHUNK_VALUES.min(head.left)]);
            head.read(a)?;
            embedding.read(b)?;
            if a.iter().zip(&*b).any(|(a, b)| a.to_bits() != b.to_bits()) {
                let problem = "lm_head.weight differs from the embedding, but config.json has tie_word_embeddings = \
                               true; set it to false if the head is a matrix of its own";
                let problems = vec![problem.to_owned()];
                return Err(InteropError::Weights { path: directory.to_owned(), problems });
            }
        }
        Ok(())
    }

    /// The values of a tensor, from its first.
    fn values<'a>(&'a self, name: &'a str) -> Values<'a> {
        let Some(tensor) = self.tensors.get(name) else { unreachable!("all tensors have been checked") };
        let (path, file) = &self.files[tensor.file];
        let left = tensor.shape.iter().product();
        Values { name, path, file, stored: tensor.stored, at: tensor.start, left, bytes: Vec::new() }
    }
}

impl Source for Weights {
    type Error = InteropError;

    fn describe(&self) -> Vec<(String, Stored, Vec<usize>)> {
        let describe = |place: &Place| {
            let name = match &place.ours {
                Target::Parameter(name) => name.clone(),
                Target::RouterBias(layer) => router_bias_name(*layer),
            };
            (name, Stored::F32, place.shape.clone())
        };
        self.places.iter().map(describe).collect()
    }

    fn give(&self, index: usize, take: &mut Take<'_, InteropError>) -> Result<()> {
        let mut chunk = vec![0.0; CHUNK_VALUES];
        for piece in &self.places[index].pieces {
            let mut values = self.values(&piece.name);
            while values.left > 0 {
                let now = &mut chunk[..CHUNK_VALUES.min(values.left)];
                values.read(now)?;
                encode(now, f32::to_le_bytes, take)?;
            }
        }
        Ok(())
    }
}

/// The values of one tensor that are not read yet.
struct Values<'a> {
    name: &'a str,
    path: &'a Path,
    file: &'a File,
    stored: Stored,
    /// Where in the file the next one is.
    at: u64,
    left: usize,
    bytes: Vec<u8>,
}

impl Values<'_> {
    /// Fills `values` with the next ones.
    fn read(&mut self, values: &mut [f32]) -> Result<()> {
        let size = self.stored.size_in_bytes();
        for values in values.chunks_mut(CHUNK_VALUES) {
            self.bytes.resize(values.len() * size, 0);
            let bytes = &mut self.bytes[..];
            files::attempt("read", self.path, || self.file.read_exact_at(bytes, self.at))?;
            self.at += bytes.len() as u64;
            self.left -= values.len();
            match self.stored {
                Stored::F32 => decode(values, bytes, f32::from_le_bytes),
                Stored::Bf16 => decode(values, bytes, |bytes| bf16::from_le_bytes(bytes).to_f32()),
                Stored::F16 => decode(values, bytes, |bytes| half::f16::from_le_bytes(bytes).to_f32()),
                _ => unreachable!("all element types have been checked"),
            }
            // Without an early end: this way it is vectorised.
            if !values.iter().fold(true, |finite, value| finite & value.is_finite()) {
                let problems = vec![format!("{} holds values that are not finite", self.name)];
                return Err(InteropError::Weights { path: self.path.to_owned(), problems });
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
