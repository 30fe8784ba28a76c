//! `embedding.cu`: the look-up.

use super::super::{Argument, Call, Floats, geometry};
use crate::error::Result;

/// x of `t` tokens from a table of `v` rows of `d`. An id outside the table gives a row of NaN.
///
/// # Errors
/// Sizes too large for an `int`.
pub fn forward(ids: Argument, table: Floats, x: Floats, [t, v, d]: [usize; 3]) -> Result<Call> {
    let narrow_bytes = table.dtype.size_in_bytes().min(x.dtype.size_in_bytes());
    let rows = geometry::embedding_forward(t, d, narrow_bytes);
    let arguments = vec![
        ids,
        table.pointer,
        x.pointer,
        Argument::long(t),
        Argument::int(v)?,
        Argument::int(d)?,
        Argument::int(rows.width as usize)?,
    ];
    let kernel = format!("embedding_forward_{}_{}", table.dtype, x.dtype);
    Ok(Call { source: "embedding.cu", kernel, launch: rows.launch, arguments })
}
