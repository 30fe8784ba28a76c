//! The way in: a model of Hugging Face transformers as a run directory, from whose checkpoint training goes on.

use std::path::Path;

use crate::checkpoint::{self, Progress, State};
use crate::config::TokenCount;
use crate::data::config::TokenizerKind;
use crate::files;
use crate::interop::huggingface::HuggingFaceModel;
use crate::interop::loaded::no_tokenizer;
use crate::train::{RunDirectory, TrainError};

/// Writes the model in `source` as a run directory at step 0. Its config.toml has everything but the text to train on.
///
/// The weights go from file to file piece by piece: the model may be larger than memory.
///
/// # Errors
/// A model that cannot be read or has no tokenizer; a directory that holds a run already; files that cannot be written.
pub fn import(source: &Path, directory: &Path) -> Result<(), TrainError> {
    let model = HuggingFaceModel::open(source)?;
    let mut config = model.to_config();
    let tokenizer = model.tokenizer.ok_or_else(|| no_tokenizer(source))?;
    let run =
        RunDirectory::take(directory)?.ok_or_else(|| TrainError::RunBusy { path: directory.to_owned() })?;
    if run.is_in_use() {
        return Err(TrainError::RunExists { path: directory.to_owned() });
    }
    config.run.name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // A configuration must have a budget and a text; the user's own take their place.
    config.run.max_tokens = TokenCount::new(20_000_000);
    config.data.train = vec!["PATH/TO/YOUR/TEXT".to_owned()];
    config.data.sequence_length = model.config.max_positions;
    config.tokenizer.kind = TokenizerKind::File;
    let path = files::attempt("find", directory, || std::path::absolute(run.tokenizer()))?;
    config.tokenizer.path = Some(path);
    let config_toml = toml::to_string(&config).map_err(|error| TrainError::System {
        action: "write the configuration as TOML",
        source: std::io::Error::other(error),
    })?;
    let (tensors, progress, extra) = (model.weights, Progress::default(), serde_json::Map::new());
    let state = State { tensors, progress, config_toml, extra };
    checkpoint::save(&run.checkpoints(), &state, 1)?;
    tokenizer.save(&run.tokenizer())?;
    // Last: weights that are refused half way leave a directory that can be imported to again.
    Ok(files::write_atomically(&run.config(), state.config_toml.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use wattle_kernels::Tensor;

    use super::*;
    use crate::interop::LoadedModel;

    const FAMILIES: [&str; 6] = ["llama", "qwen3", "mixtral", "olmoe", "qwen3_moe", "glm4_moe"];

    /// A copy of a family's model with a tokenizer.
    fn model(family: &str, directory: &Path) -> PathBuf {
        let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/interop").join(family);
        let copy = directory.join(family);
        fs::create_dir(&copy).unwrap();
        for name in ["config.json", "model.safetensors"] {
            fs::copy(shared.join(name), copy.join(name)).unwrap();
        }
        let tokenizer = r#"{"version": "1.0", "model": {"type": "WordLevel", "unk_token": "</s>",
            "vocab": {"</s>": 0, "a": 1}}, "added_tokens": [{"id": 0, "content": "</s>", "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}]}"#;
        fs::write(copy.join("tokenizer.json"), tokenizer).unwrap();
        copy
    }

    fn bits(tensor: &Tensor) -> Vec<u32> {
        tensor.data::<f32>().unwrap().iter().map(|value| value.to_bits()).collect()
    }

    #[test]
    fn what_is_imported_piece_by_piece_is_what_loading_and_saving_would_write() {
        let scratch = tempfile::tempdir().unwrap();
        for family in FAMILIES {
            let source = model(family, scratch.path());
            let run = scratch.path().join(format!("{family}-run"));
            import(&source, &run).unwrap();
            let imported = run.join("checkpoints/step-00000000");
            let state = checkpoint::load(&imported, |_| true).unwrap();
            let [direct, through_run] = [&source, &run].map(|path| LoadedModel::open(path).unwrap());
            for loaded in [&direct, &through_run] {
                let biases = loaded.routing.iter().filter_map(|state| state.bias.as_ref());
                let values = loaded.store.iter().map(|parameter| &parameter.master).chain(biases);
                let expected: Vec<_> = values.map(|tensor| (tensor.shape().to_vec(), bits(tensor))).collect();
                let found = state.tensors.iter().map(|named| &named.tensor);
                let found: Vec<_> = found.map(|tensor| (tensor.shape().to_vec(), bits(tensor))).collect();
                assert!(expected == found, "{family}");
            }
            let again = checkpoint::save(&scratch.path().join(format!("{family}-again")), &state, 1).unwrap();
            for name in ["rank-0.safetensors", "manifest.json"] {
                let [streamed, saved] = [&imported, &again].map(|path| fs::read(path.join(name)).unwrap());
                assert!(streamed == saved, "{family}: {name}");
            }
        }
    }

    #[test]
    fn weights_that_are_refused_half_way_leave_a_directory_to_import_to() {
        let scratch = tempfile::tempdir().unwrap();
        let source = model("olmoe", scratch.path());
        let (weights, run) = (source.join("model.safetensors"), scratch.path().join("run"));
        let sound = fs::read(&weights).unwrap();
        let mut damaged = sound.clone();
        let end = damaged.len();
        damaged[end - 4..].copy_from_slice(&f32::INFINITY.to_le_bytes());
        fs::write(&weights, &damaged).unwrap();
        let error = import(&source, &run).unwrap_err();
        assert!(error.to_string().contains("not finite; the model is not taken"), "{error}");
        assert_eq!(error.exit_code(), Some(65));
        assert_eq!(fs::read_dir(run.join("checkpoints")).unwrap().count(), 0);
        fs::write(&weights, &sound).unwrap();
        import(&source, &run).unwrap();
        let error = import(&source, &run).unwrap_err();
        assert!(matches!(error, TrainError::RunExists { .. }), "{error}");
    }
}
