//! What the whole-program tests share: an f64 decoder as oracle, and the binary at work in a temporary directory.

pub mod outcome;
pub mod process;
pub mod program;
pub mod reference_decoder;
