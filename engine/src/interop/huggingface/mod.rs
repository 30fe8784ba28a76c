//! Models in the layout of Hugging Face transformers: a directory with config.json and safetensors files.
//!
//! Six families, which are this engine's own shapes under other names. Everything in a configuration that would change
//! the numbers is honoured or refused by name, and every tensor is accounted for.

mod config;
mod family;
mod fields;
mod layout;
mod read;
mod rope;
mod write;

pub use config::HuggingFaceConfig;
pub use family::Family;
pub use read::{HuggingFaceModel, Weights, is_model};
pub(super) use write::write_json;
pub use write::{WeightType, write_model};
