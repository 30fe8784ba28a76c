//! The way in: a model of Hugging Face transformers as a run directory, from whose checkpoint training goes on.

use std::path::Path;

use crate::checkpoint::{self, Progress, State};
use crate::config::{Config, TokenCount};
use crate::data::config::TokenizerKind;
use crate::files;
use crate::interop::LoadedModel;
use crate::train::{RunDirectory, TrainError, model_tensors};

/// Writes `model` as a run directory at step 0. Its config.toml has everything but the text to train on.
///
/// # Errors
/// A directory that holds a run already; files that cannot be written.
pub fn import(model: &LoadedModel, directory: &Path) -> Result<(), TrainError> {
    let run =
        RunDirectory::take(directory)?.ok_or_else(|| TrainError::RunBusy { path: directory.to_owned() })?;
    if run.is_in_use() {
        return Err(TrainError::RunExists { path: directory.to_owned() });
    }
    let mut config: Config = model.config.clone();
    config.run.name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // A configuration must have a budget and a text; the user's own take their place.
    config.run.max_tokens = TokenCount::new(20_000_000);
    config.data.train = vec!["PATH/TO/YOUR/TEXT".to_owned()];
    config.data.sequence_length = model.max_positions;
    config.tokenizer.kind = TokenizerKind::File;
    let tokenizer = files::attempt("find", directory, || std::path::absolute(run.tokenizer()))?;
    config.tokenizer.path = Some(tokenizer);
    let text = toml::to_string(&config).map_err(|error| TrainError::System {
        action: "write the configuration as TOML",
        source: std::io::Error::other(error),
    })?;
    files::write_atomically(&run.config(), text.as_bytes())?;
    model.tokenizer()?.save(&run.tokenizer())?;
    let state = State {
        tensors: model_tensors(&model.store, &model.routing),
        progress: Progress::default(),
        config_toml: text,
        extra: serde_json::Map::new(),
    };
    checkpoint::save(&run.checkpoints(), &state, 1)?;
    Ok(())
}
