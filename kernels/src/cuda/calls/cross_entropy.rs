//! `cross_entropy.cu`.

use super::super::{Argument, Call, Floats, geometry};
use crate::error::Result;

/// The losses (f32) of `t` rows of `v` logits, and with `dlogits` their gradient times `grad_scale`. It has the dtype of
/// the logits, whose place it may take, or is bf16 where they are f32. Targets outside 0..v are not followed.
///
/// # Errors
/// A vocabulary too large for an `int`.
pub fn losses(
    logits: Floats,
    targets: Argument,
    losses: Argument,
    dlogits: Option<Floats>,
    [t, v]: [usize; 2],
    grad_scale: f32,
) -> Result<Call> {
    let gradient = dlogits.map_or(logits.dtype, |dlogits| dlogits.dtype);
    let suffix = match gradient == logits.dtype {
        true => logits.dtype.to_string(),
        false => format!("{}_{gradient}", logits.dtype),
    };
    let arguments = vec![
        logits.pointer,
        targets,
        losses,
        dlogits.map_or(Argument::NULL, |dlogits| dlogits.pointer),
        Argument::int(v)?,
        Argument::F32(grad_scale),
    ];
    let kernel = format!("cross_entropy_{suffix}");
    Ok(Call { source: "cross_entropy.cu", kernel, launch: geometry::cross_entropy(t), arguments })
}
