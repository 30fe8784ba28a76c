//! Models: layers that hold parameter ids and compose operations on the tape.

mod attention;
mod cache;
pub mod config;
mod decoder;
mod feed_forward;
mod generate;
mod moe;
mod parameters;
pub mod presets;
mod rope;

pub use attention::Attention;
pub use cache::KvCache;
pub use decoder::{Decoder, Pass};
pub use feed_forward::FeedForward;
pub use generate::{Sampling, generate};
pub use moe::{MoeLayer, RoutingState};
pub use parameters::{Init, ParamId, Parameter, ParameterStore};
pub use rope::RopeScaling;
