//! What the whole-program tests share: an f64 decoder as oracle, the binary at work in a temporary directory,
//! and a provider of carbon intensities for it to ask.

pub mod outcome;
pub mod process;
pub mod program;
pub mod provider;
pub mod reference_decoder;
