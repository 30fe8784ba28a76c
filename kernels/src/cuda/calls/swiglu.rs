//! `swiglu.cu`.

use super::super::{Argument, Call, Floats, geometry};
use crate::error::Result;

/// h of `r` rows of `f` hidden elements. `weights` is f32 or null.
///
/// # Errors
/// Rows too long for an `int`.
pub fn forward(gate_up: Floats, weights: Argument, h: Argument, [r, f]: [usize; 2]) -> Result<Call> {
    call("forward", gate_up, vec![gate_up.pointer, weights, h], [r, f])
}

/// The gradients dgate_up and dweights (f32, null when `weights` is), from dh and what the forward was given.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    dh: Floats,
    [gate_up, weights]: [Argument; 2],
    [dgate_up, dweights]: [Argument; 2],
    [r, f]: [usize; 2],
) -> Result<Call> {
    call("backward", dh, vec![dh.pointer, gate_up, weights, dgate_up, dweights], [r, f])
}

fn call(way: &str, floats: Floats, mut arguments: Vec<Argument>, [r, f]: [usize; 2]) -> Result<Call> {
    let rows = geometry::swiglu(r, f, floats.dtype.size_in_bytes());
    arguments.extend([Argument::long(r), Argument::int(f)?, Argument::int(rows.width as usize)?]);
    let kernel = format!("swiglu_{way}_{}", floats.dtype);
    Ok(Call { source: "swiglu.cu", kernel, launch: rows.launch, arguments })
}
