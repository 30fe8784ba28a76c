//! A trained model read back for evaluation, generation and logits.

use std::path::{Path, PathBuf};

use wattle_kernels::DType;

use crate::checkpoint::{self, CheckpointError, State};
use crate::config::Config;
use crate::data::source::Documents;
use crate::data::{self, TokenStream, Tokenizer};
use crate::files;
use crate::interop;
use crate::interop::huggingface::{self, HuggingFaceConfig, HuggingFaceModel};
use crate::model::{Decoder, ParameterStore, RoutingState};
use crate::telemetry::message;
use crate::train::{RunDirectory, TrainError, is_of_model, restore_model};

/// A model that computes in f32 and does not train.
#[derive(Debug)]
pub struct LoadedModel {
    /// The model.
    pub decoder: Decoder,
    /// Its weights.
    pub store: ParameterStore,
    /// Its router biases.
    pub routing: Vec<RoutingState>,
    /// The longest sequence it was trained on.
    pub max_positions: usize,
    /// Rows of its embedding.
    pub vocab_size: usize,
    /// Its shape, in the sections `[model]` and `[moe]`.
    pub config: Config,
    /// None beside weights from elsewhere that came without one.
    tokenizer: Option<Tokenizer>,
    path: PathBuf,
}

impl LoadedModel {
    /// Opens a run directory (its newest valid checkpoint; refused ones are named on stderr), a checkpoint directory,
    /// or a directory of Hugging Face transformers.
    ///
    /// # Errors
    /// [`TrainError`]: nothing there, damaged, or of another shape than its configuration says.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        if huggingface::is_model(path) {
            return Ok(Self::open_huggingface(path)?);
        }
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
        let vocab_size = model.vocab_size.unwrap_or(tokenizer.vocab_size());
        tokenizer.check_rows(vocab_size)?;
        let decoder = Decoder::new(&mut store, model, moe, vocab_size, max_positions, DType::F32, None)?;
        let mut routing = decoder.new_routing()?;
        restore_model(&mut store, &mut routing, state, &from)?;
        let path = path.to_owned();
        let tokenizer = Some(tokenizer);
        Ok(LoadedModel { decoder, store, routing, max_positions, vocab_size, config, tokenizer, path })
    }

    fn open_huggingface(path: &Path) -> interop::Result<Self> {
        let opened = HuggingFaceModel::open(path)?;
        let config = opened.to_config();
        let HuggingFaceConfig { vocab_size, max_positions, .. } = opened.config;
        let mut store = ParameterStore::default();
        let (model, moe) = (&config.model, config.moe.as_ref());
        let decoder = Decoder::new(&mut store, model, moe, vocab_size, max_positions, DType::F32, None)?;
        let mut routing = decoder.new_routing()?;
        opened.weights.load(&mut store, &mut routing)?;
        let (tokenizer, path) = (opened.tokenizer, path.to_owned());
        Ok(LoadedModel { decoder, store, routing, max_positions, vocab_size, config, tokenizer, path })
    }

    /// The energy ledger of the run that trained it, where it lies in one.
    pub fn ledger(&self) -> Option<PathBuf> {
        let full = self.path.canonicalize().ok()?;
        let run = if full.join("manifest.json").exists() { full.parent()?.parent()? } else { &full };
        Some(RunDirectory::at(run).ledger()).filter(|ledger| ledger.is_file())
    }

    /// Its tokenizer.
    ///
    /// # Errors
    /// Weights from elsewhere that came without one.
    pub fn tokenizer(&self) -> data::Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| no_tokenizer(&self.path))
    }

    /// The tokens of a text.
    ///
    /// # Errors
    /// Text that is missing, empty or no text.
    pub fn read(&self, entries: &[String]) -> Result<TokenStream, TrainError> {
        let documents = Documents::open("--data", entries, &self.config.data.text_field, None)?;
        Ok(TokenStream::encode(documents, self.tokenizer()?)?.0)
    }

    /// Refuses token ids that the model does not know, and more than it was trained to see at once.
    ///
    /// # Errors
    /// [`data::Error::UnknownId`] and [`data::Error::TooLong`], each with both numbers.
    pub fn check_ids(&self, ids: &[u32]) -> data::Result<()> {
        let (max_positions, vocab_size) = (self.max_positions, self.vocab_size);
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
        let tokenizer = self.tokenizer()?;
        let mut ids = vec![tokenizer.boundary_id()];
        ids.extend(tokenizer.encode(prompt)?);
        Ok(ids)
    }
}

/// What needs a tokenizer was given a model without one.
pub(super) fn no_tokenizer(model: &Path) -> data::Error {
    data::Error::Tokenizer {
        what: model.join("tokenizer.json").display().to_string(),
        problem: "is missing, and this needs a tokenizer".into(),
        remedy: "put the model's tokenizer.json beside its weights",
    }
}

/// The state without the optimizer's, where it was found, and the run directory that holds the tokenizer.
fn find(path: &Path) -> Result<(State, PathBuf, RunDirectory), TrainError> {
    if path.join("manifest.json").exists() {
        // Made absolute, so that a path such as `step-00000100` has something above it.
        let full = files::attempt("read", path, || path.canonicalize())?;
        let run = full.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
        return Ok((checkpoint::load(path, is_of_model)?, path.to_owned(), RunDirectory::at(run)));
    }
    let run = RunDirectory::at(path);
    let newest = checkpoint::newest_valid(&run.checkpoints(), is_of_model)?.ok_or_else(|| {
        let remedy = "give a run directory that holds a checkpoint, or a checkpoint directory";
        CheckpointError::NotFound { path: run.checkpoints(), remedy }
    })?;
    for rejected in &newest.rejected {
        message(format_args!("checkpoint refused: {}", rejected.reason));
    }
    Ok((newest.state, newest.path, run))
}
