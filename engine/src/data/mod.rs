//! From files of text to batches of token ids.
//!
//! [`Documents`] streams text in an order that depends on names alone; a [`Tokenizer`] is learned from it or
//! loaded; [`TokenCorpus`] packs the tokens of all documents, each ended by the boundary token, into a
//! training and a held-out stream; a [`Dataset`] cuts a stream into samples and finds any of them by its
//! index alone, so that a change of batch size, of rank count or a restart never skips or repeats a sample.

pub mod batches;
pub mod cargo_registry;
pub mod config;
pub mod corpus;
pub mod error;
mod readers;
pub mod source;
mod split;
pub mod tokenizer;

pub use batches::{Batch, Dataset, IGNORED, evaluation_batches};
pub use config::{DataConfig, HeldOutBy, TokenizerConfig, TokenizerKind};
pub use corpus::{TokenCorpus, TokenStream};
pub use error::{Error, Result};
pub use source::{CorpusSummary, Document, Documents, Skipped};
pub use tokenizer::{StreamDecoder, Tokenizer};
