//! The dense SwiGLU feed-forward block: dense layers and shared experts.

use wattle_router::Result;

use crate::autograd::{Tape, Var};
use crate::model::ParamId;
use crate::model::decoder::Builder;

/// down(silu(gate(x))·up(x)), with gate and up in one matrix.
#[derive(Debug)]
pub struct FeedForward {
    gate_up: ParamId,
    down: ParamId,
}

impl FeedForward {
    /// Adds the block's parameters under `name`, with hidden size f.
    ///
    /// # Errors
    /// Out of memory.
    pub(super) fn new(build: &mut Builder, name: &str, d: usize, f: usize) -> Result<Self> {
        Ok(FeedForward {
            gate_up: build.add(&format!("{name}.gate_up"), &[2 * f, d], build.input_init())?,
            down: build.add(&format!("{name}.down"), &[d, f], build.output_init())?,
        })
    }

    /// The block's contribution to the residual stream.
    ///
    /// # Errors
    /// Any kernel error.
    pub(super) fn forward(&self, tape: &mut Tape, x: &Var) -> Result<Var> {
        let gate_up = tape.linear(x, self.gate_up)?;
        let hidden = tape.swiglu(&gate_up)?;
        tape.linear(&hidden, self.down)
    }
}
