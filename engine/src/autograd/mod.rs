//! The tape: a model's forward pass calls coarse operations on it, and the tape plays them back for the gradients.
//!
//! An operation computes its value at once and, while the tape records, leaves a closure that turns the gradient of
//! its output into gradients of its inputs and parameters. Models only compose; no model has a backward of its own.

mod clock;
mod ops;
mod tape;

pub use clock::{Phase, PhaseClock};
pub use ops::RoutedExperts;
pub use tape::{Losses, Tape, Var};
