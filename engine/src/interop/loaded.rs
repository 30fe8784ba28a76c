//! A trained model read back for evaluation, generation and logits.

use std::path::{Path, PathBuf};

use wattle_kernels::DType;

use crate::checkpoint::{self, CheckpointError, State};
use crate::config::Config;
use crate::data::source::Documents;
use crate::data::{self, TokenStream, Tokenizer};
use crate::files;
use crate::model::{Decoder, ParameterStore, RoutingState};
use crate::telemetry::message;
use crate::train::{RunDirectory, TrainError, restore_model};

/// A model that computes in f32 and does not train.
#[derive(Debug)]
pub struct LoadedModel {
    /// The model.
    pub decoder: Decoder,
    /// Its weights.
    pub store: ParameterStore,
    /// Its router biases.
    pub routing: Vec<RoutingState>,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// The longest sequence it was trained on.
    pub max_positions: usize,
    config: Config,
}

impl LoadedModel {
    /// Opens a run directory (its newest valid checkpoint; refused ones are named on stderr) or a checkpoint
    /// directory.
    ///
    /// # Errors
    /// [`TrainError`]: nothing there, damaged, or of another shape than its configuration says.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        let (state, from, run) = find(path)?;
        let tokenizer = Tokenizer::from_file(&run.tokenizer())?;
        let config =
            Config::parse(&format!("{} (config)", from.display()), state.config_toml.as_bytes(), &[])
                .map_err(|error| CheckpointError::Corrupt {
                    path: from.clone(),
                    tensor: None,
                    what: format!("its configuration does not load: {error}"),
                })?
                .config;
        let max_positions = config.data.sequence_length;
        let mut store = ParameterStore::default();
        let (model, moe) = (&config.model, config.moe.as_ref());
        let vocab_size = tokenizer.vocab_size();
        let decoder = Decoder::new(&mut store, model, moe, vocab_size, max_positions, DType::F32, None)?;
        let mut routing = decoder.new_routing()?;
        restore_model(&mut store, &mut routing, state, &from)?;
        Ok(LoadedModel { decoder, store, routing, tokenizer, max_positions, config })
    }

    /// The tokens of a text.
    ///
    /// # Errors
    /// Text that is missing, empty or no text.
    pub fn read(&self, entries: &[String]) -> Result<TokenStream, TrainError> {
        let documents = Documents::open("--data", entries, &self.config.data.text_field, None)?;
        Ok(TokenStream::encode(documents, &self.tokenizer)?.0)
    }

    /// Refuses token ids that the model does not know, and more than it was trained to see at once.
    ///
    /// # Errors
    /// [`data::Error::UnknownId`] and [`data::Error::TooLong`], each with both numbers.
    pub fn check_ids(&self, ids: &[u32]) -> data::Result<()> {
        let (max_positions, vocab_size) = (self.max_positions, self.tokenizer.vocab_size());
        if ids.len() > max_positions {
            return Err(data::Error::TooLong { num_tokens: ids.len(), max_positions });
        }
        match ids.iter().find(|&&id| id as usize >= vocab_size) {
            Some(&id) => Err(data::Error::UnknownId { id, vocab_size }),
            None => Ok(()),
        }
    }

    /// The ids of a prompt, led by the boundary token as every document in training was.
    ///
    /// # Errors
    /// The tokenizer's.
    pub fn prompt_ids(&self, prompt: &str) -> Result<Vec<u32>, TrainError> {
        let mut ids = vec![self.tokenizer.boundary_id()];
        ids.extend(self.tokenizer.encode(prompt)?);
        Ok(ids)
    }
}

/// The state, where it was found, and the run directory that holds the tokenizer.
fn find(path: &Path) -> Result<(State, PathBuf, RunDirectory), TrainError> {
    if path.join("manifest.json").exists() {
        // Made absolute, so that a path such as `step-00000100` has something above it.
        let full = files::attempt("read", path, || path.canonicalize())?;
        let run = full.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
        return Ok((checkpoint::load(path)?, path.to_owned(), RunDirectory::at(run)));
    }
    let run = RunDirectory::at(path);
    let newest = checkpoint::newest_valid(&run.checkpoints())?.ok_or_else(|| CheckpointError::NotFound {
        path: run.checkpoints(),
        remedy: "give a run directory that holds a checkpoint, or a checkpoint directory",
    })?;
    for rejected in &newest.rejected {
        message(format_args!("checkpoint refused: {}", rejected.reason));
    }
    Ok((newest.state, newest.path, run))
}
