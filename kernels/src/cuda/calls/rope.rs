//! `rope.cu`.

use super::super::{Argument, Call, Floats, geometry};
use crate::error::Result;

/// Sizes and places of one call.
#[derive(Clone, Copy, Debug)]
pub struct Rotation {
    /// Shape of x, `[b, t, h, d]`.
    pub shape: [usize; 4],
    /// Pairs of a head that turn, the length of the table's rows.
    pub half: usize,
    /// Position of the first token of each sequence.
    pub start_position: usize,
    /// The other way: the backward.
    pub back: bool,
}

/// x turned in place by the angles of the table's `cos` and `sin`, f32 `[positions, half]`.
///
/// # Errors
/// Sizes too large for an `int`.
pub fn rotate(x: Floats, cos: Argument, sin: Argument, rotation: &Rotation) -> Result<Call> {
    let Rotation { shape: [b, t, h, d], half, start_position, back } = *rotation;
    let arguments = vec![
        x.pointer,
        cos,
        sin,
        Argument::long(b * t),
        Argument::int(t)?,
        Argument::int(start_position)?,
        Argument::int(h)?,
        Argument::int(d)?,
        Argument::int(half)?,
        Argument::flag(back),
    ];
    let launch = geometry::rope(b * t, half, x.dtype.size_in_bytes());
    Ok(Call { source: "rope.cu", kernel: format!("rope_{}", x.dtype), launch, arguments })
}
