//! Matrix multiplication with a weight, y = x·Wᵀ, and its two gradients.
//!
//! Shapes: x_ti, w_oi, y_to; leading dimensions of x and y are folded into t. Weights are stored `[out, in]`.
//! dx_ti = dy_to·W_oi; dW_oi += dy_toᵀ·x_ti. Sums are taken in f32 whatever the dtype of the operands.
//! Napkin: 2·t·o·i FLOPs each, (t·i + o·i + t·o) elements moved.

use crate::cpu;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::check;
use crate::profile::{self, Work, bytes_of};
use crate::tensor::Tensor;

/// y_to = x_ti·w_oiᵀ, stored as `out`. x and w share one float dtype.
///
/// # Errors
/// Shapes or dtypes that do not fit; out of memory.
pub fn forward(x_ti: &Tensor, w_oi: &Tensor, out: DType) -> Result<Tensor> {
    const OP: &str = "matmul";
    check::float(OP, "x", x_ti)?;
    check::dtype(OP, "w", w_oi, x_ti.dtype())?;
    check::rank(OP, "w", w_oi, 2)?;
    check::last_dim(OP, "x", x_ti, w_oi.last_dim())?;
    let y_bytes = x_ti.num_rows() * w_oi.shape()[0] * out.size_in_bytes();
    let _span = profile::span(OP, x_ti.dtype(), || work(x_ti, w_oi, bytes_of(&[x_ti, w_oi]) + y_bytes));
    let mut y_to = Tensor::scratch(&with_last_dim(x_ti, w_oi.shape()[0]), out, x_ti.device())?;
    check::float(OP, "y", &y_to)?;
    match x_ti.device() {
        Device::Cpu => cpu::matmul::forward(x_ti, w_oi, &mut y_to)?,
        device @ Device::Cuda(_) => return Err(Error::Unsupported { op: OP, device }),
    }
    Ok(y_to)
}

/// dx_ti = dy_to·w_oi, stored in the dtype of dy. With `onto`, the product is added to that gradient instead.
///
/// # Errors
/// Shapes or dtypes that do not fit; out of memory.
pub fn backward_input(dy_to: &Tensor, w_oi: &Tensor, onto: Option<Tensor>) -> Result<Tensor> {
    const OP: &str = "matmul_backward_input";
    check::float(OP, "dy", dy_to)?;
    check::dtype(OP, "w", w_oi, dy_to.dtype())?;
    check::rank(OP, "w", w_oi, 2)?;
    check::last_dim(OP, "dy", dy_to, w_oi.shape()[0])?;
    let moves = if onto.is_some() { 2 } else { 1 };
    let dx_bytes = moves * dy_to.num_rows() * w_oi.last_dim() * dy_to.dtype().size_in_bytes();
    let _span = profile::span(OP, dy_to.dtype(), || work(dy_to, w_oi, bytes_of(&[dy_to, w_oi]) + dx_bytes));
    let shape = with_last_dim(dy_to, w_oi.last_dim());
    let accumulate = onto.is_some();
    let mut dx_ti = match onto {
        Some(dx) => dx,
        None => Tensor::scratch(&shape, dy_to.dtype(), dy_to.device())?,
    };
    check::shape(OP, "dx", &dx_ti, &shape)?;
    check::dtype(OP, "dx", &dx_ti, dy_to.dtype())?;
    match dy_to.device() {
        Device::Cpu => cpu::matmul::backward_input(dy_to, w_oi, &mut dx_ti, accumulate)?,
        device @ Device::Cuda(_) => return Err(Error::Unsupported { op: OP, device }),
    }
    Ok(dx_ti)
}

/// dw_oi += dy_toᵀ·x_ti; dw is f32.
///
/// # Errors
/// Shapes or dtypes that do not fit; out of memory.
pub fn backward_weight(dy_to: &Tensor, x_ti: &Tensor, dw_oi: &mut Tensor) -> Result<()> {
    const OP: &str = "matmul_backward_weight";
    check::float(OP, "dy", dy_to)?;
    check::dtype(OP, "x", x_ti, dy_to.dtype())?;
    check::shape(OP, "x", x_ti, &with_last_dim(dy_to, x_ti.last_dim()))?;
    check::shape(OP, "dw", dw_oi, &[dy_to.last_dim(), x_ti.last_dim()])?;
    check::dtype(OP, "dw", dw_oi, DType::F32)?;
    let bytes = || bytes_of(&[dy_to, x_ti, &*dw_oi, &*dw_oi]);
    let _span = profile::span(OP, dy_to.dtype(), || work(dy_to, dw_oi, bytes()));
    match dy_to.device() {
        Device::Cpu => cpu::matmul::backward_weight(dy_to, x_ti, dw_oi),
        device @ Device::Cuda(_) => Err(Error::Unsupported { op: OP, device }),
    }
}

fn work(rows: &Tensor, w_oi: &Tensor, bytes: usize) -> Work {
    let [t, o, i] = [rows.num_rows(), w_oi.num_rows(), w_oi.last_dim()];
    Work::products(&[t, o, i], 2 * t * o * i, bytes)
}

/// The shape of `x` with its last dimension replaced.
fn with_last_dim(x: &Tensor, dim: usize) -> Vec<usize> {
    let mut shape = x.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = dim;
    }
    shape
}
