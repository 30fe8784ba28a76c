//! `permute.cu`.

use super::super::{Argument, Call, Floats, geometry};
use crate::error::Result;

/// Row r of out is `x[rows[r]]`, zeros for -1: `r` rows of `d`.
///
/// # Errors
/// Rows too long for an `int`.
pub fn gather(x: Floats, rows: Argument, out: Argument, [r, d]: [usize; 2]) -> Result<Call> {
    let geometry = geometry::permute(r, d, x.dtype.size_in_bytes());
    let width = Argument::int(geometry.width as usize)?;
    let arguments = vec![x.pointer, rows, out, Argument::long(r), Argument::int(d)?, width];
    Ok(Call {
        source: "permute.cu",
        kernel: format!("gather_{}", x.dtype),
        launch: geometry.launch,
        arguments,
    })
}

/// Row t of out is the sum of `y[token_rows[t, k]]`, -1 left out: `t` rows of `d` from `k` each.
///
/// # Errors
/// As [`gather`].
pub fn gather_sum(y: Floats, token_rows: Argument, out: Argument, [t, k, d]: [usize; 3]) -> Result<Call> {
    let geometry = geometry::permute(t, d, y.dtype.size_in_bytes());
    let width = Argument::int(geometry.width as usize)?;
    let arguments =
        vec![y.pointer, token_rows, out, Argument::long(t), Argument::int(k)?, Argument::int(d)?, width];
    let kernel = format!("gather_sum_{}", y.dtype);
    Ok(Call { source: "permute.cu", kernel, launch: geometry.launch, arguments })
}
