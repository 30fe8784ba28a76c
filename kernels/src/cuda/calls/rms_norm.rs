//! `rms_norm.cu`: the sum of the partials is `reduce::add_column_sums`.

use super::super::{Argument, Call, Floats, geometry};
use crate::dtype::DType;
use crate::error::{Error, Result};

/// The buffers of the forward. `residual` and `sum` are null where nothing is added first.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// `[t, d]`
    pub x: Floats,
    /// `[t, d]` in the dtype of x
    pub residual: Argument,
    /// `[d]`, f32 or the dtype of x
    pub w: Floats,
    /// `[t, d]` in the dtype of x
    pub sum: Argument,
    /// `[t, d]` in the dtype of x
    pub y: Argument,
    /// f32 `[t]`
    pub rstd: Argument,
}

/// The buffers of the backward.
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    /// `[t, d]`
    pub dy: Floats,
    /// `[t, d]` in the dtype of dy
    pub x: Argument,
    /// `[d]`, f32 or the dtype of dy
    pub w: Floats,
    /// f32 `[t]`
    pub rstd: Argument,
    /// `[t, d]` in the dtype of dy
    pub dx: Argument,
    /// f32 `[num_partials, d]`
    pub partials: Argument,
}

/// y and rstd of `t` rows of `d`.
///
/// # Errors
/// [`Error::Shape`] for rows that the kernel cannot hold.
pub fn forward(buffers: &Forward, [t, d]: [usize; 2], eps: f32) -> Result<Call> {
    let Forward { x, residual, w, sum, y, rstd } = *buffers;
    let rows = geometry::rms_norm(t, d, x.dtype.size_in_bytes()).ok_or_else(|| too_long([t, d]))?;
    let width = Argument::int(rows.width as usize)?;
    let arguments = vec![
        x.pointer,
        residual,
        w.pointer,
        sum,
        y,
        rstd,
        Argument::long(t),
        Argument::int(d)?,
        width,
        Argument::F32(eps),
    ];
    Ok(call(format!("rms_norm_forward_{}", suffix(x.dtype, w.dtype)), rows.launch, arguments))
}

/// Rows of partials that the backward of this shape writes.
///
/// # Errors
/// As [`forward`].
pub fn num_partials([t, d]: [usize; 2], dtype: DType) -> Result<usize> {
    let rows = geometry::rms_norm_backward(t, d, dtype.size_in_bytes()).ok_or_else(|| too_long([t, d]))?;
    Ok(rows.launch.grid[0] as usize)
}

/// dx, and the partials of dw. With `accumulate`, dx gains the gradient instead.
///
/// # Errors
/// As [`forward`].
pub fn backward(buffers: &Backward, [t, d]: [usize; 2], accumulate: bool) -> Result<Call> {
    let Backward { dy, x, w, rstd, dx, partials } = *buffers;
    let rows = geometry::rms_norm_backward(t, d, dy.dtype.size_in_bytes()).ok_or_else(|| too_long([t, d]))?;
    let arguments = vec![
        dy.pointer,
        x,
        w.pointer,
        rstd,
        dx,
        partials,
        Argument::long(t),
        Argument::int(d)?,
        Argument::int(rows.width as usize)?,
        Argument::flag(accumulate),
    ];
    Ok(call(format!("rms_norm_backward_{}", suffix(dy.dtype, w.dtype)), rows.launch, arguments))
}

fn call(kernel: String, launch: geometry::Launch, arguments: Vec<Argument>) -> Call {
    Call { source: "rms_norm.cu", kernel, launch, arguments }
}

fn suffix(x: DType, w: DType) -> String {
    if x == w { x.to_string() } else { format!("{x}_weight_{w}") }
}

fn too_long(shape: [usize; 2]) -> Error {
    let expected = "rows of at most 16 KiB".to_owned();
    Error::Shape { op: "rms_norm", what: "x", got: shape.to_vec(), expected }
}
