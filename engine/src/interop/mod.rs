//! Models from disk, ready to compute: a run directory, one of its checkpoints, or a directory of Hugging Face
//! transformers; and the way out to there.

mod error;
mod export;
pub mod huggingface;
mod import;
mod loaded;
mod model_card;

pub use error::{InteropError, Result};
pub use export::export;
pub use import::import;
pub use loaded::LoadedModel;
