//! The way out: a model as Hugging Face transformers loads it.

use std::path::Path;

use serde_json::json;

use super::huggingface::{Family, HuggingFaceConfig, WeightType, write_model};
use super::model_card::model_card;
use super::{InteropError, LoadedModel, Result};
use crate::files;

/// Writes `model` into `directory`: configuration, weights, tokenizer, model card. Gives the family it was written as.
///
/// # Errors
/// [`InteropError::Inexpressible`] with the reason of each family; files that cannot be written.
pub fn export(model: &LoadedModel, directory: &Path, weight_type: WeightType) -> Result<Family> {
    let (shape, moe) = (&model.config.model, model.config.moe.as_ref());
    let family = Family::of(shape, moe).map_err(|reasons| InteropError::Inexpressible { reasons })?;
    let config = HuggingFaceConfig {
        family,
        model: shape.clone(),
        moe: moe.cloned(),
        vocab_size: model.vocab_size,
        max_positions: model.max_positions,
    };
    files::create_directory(directory)?;
    let tokenizer = model.tokenizer().ok();
    if let Some(tokenizer) = tokenizer {
        tokenizer.save(&directory.join("tokenizer.json"))?;
        let end = tokenizer.boundary_token();
        let about = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": end,
            "eos_token": end,
            "model_max_length": model.max_positions,
            "clean_up_tokenization_spaces": false,
        });
        super::huggingface::write_json(&directory.join("tokenizer_config.json"), &about)?;
    }
    let card = model_card(model, family, model.ledger().as_deref())?;
    files::write_atomically(&directory.join("README.md"), card.as_bytes())?;
    let end = tokenizer.map(|tokenizer| tokenizer.boundary_id());
    write_model(directory, &config, end, &model.store, &model.routing, weight_type)?;
    Ok(family)
}
