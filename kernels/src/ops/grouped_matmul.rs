//! Grouped matrix multiplication: rows sorted by expert, each group of rows with its own weight.
//!
//! Shapes: x_ri, w_eoi, y_ro, offsets (i32) `[e + 1]`: rows `offsets[e]..offsets[e+1]` belong to expert e. Groups may
//! be empty. `offsets[0]` is 0 and `offsets[e]` at most r; rows behind the last offset are padding and come out zero.
//! y = x·W_eᵀ; dx = dy·W_e; dW_e += dy_eᵀ·x_e, in f32.
//! Napkin: 2·r·o·i FLOPs each.

use crate::cpu;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::check;
use crate::profile::{self, Work, bytes_of};
use crate::tensor::Tensor;

/// y_ro = x_ri·w_eoiᵀ by group, in the dtype of x.
///
/// # Errors
/// Shapes, dtypes or offsets that do not fit; out of memory.
pub fn forward(x_ri: &Tensor, w_eoi: &Tensor, offsets_e: &Tensor) -> Result<Tensor> {
    const OP: &str = "grouped_matmul";
    check_operands(OP, x_ri, w_eoi, offsets_e)?;
    check::shape(OP, "x", x_ri, &[x_ri.num_rows(), w_eoi.last_dim()])?;
    let y_bytes = x_ri.num_rows() * w_eoi.shape()[1] * x_ri.dtype().size_in_bytes();
    let _span =
        profile::span(OP, x_ri.dtype(), || work(w_eoi, offsets_e, bytes_of(&[x_ri, w_eoi]) + y_bytes));
    let mut y_ro = Tensor::scratch(&[x_ri.num_rows(), w_eoi.shape()[1]], x_ri.dtype(), x_ri.device())?;
    match x_ri.device() {
        Device::Cpu => cpu::grouped_matmul::forward(x_ri, w_eoi, offsets_e, &mut y_ro)?,
        device @ Device::Cuda(_) => return Err(Error::Unsupported { op: OP, device }),
    }
    Ok(y_ro)
}

/// dx_ri = dy_ro·w_eoi by group, in the dtype of dy.
///
/// # Errors
/// Shapes, dtypes or offsets that do not fit; out of memory.
pub fn backward_input(dy_ro: &Tensor, w_eoi: &Tensor, offsets_e: &Tensor) -> Result<Tensor> {
    const OP: &str = "grouped_matmul_backward_input";
    check_operands(OP, dy_ro, w_eoi, offsets_e)?;
    check::shape(OP, "dy", dy_ro, &[dy_ro.num_rows(), w_eoi.shape()[1]])?;
    let dx_bytes = dy_ro.num_rows() * w_eoi.last_dim() * dy_ro.dtype().size_in_bytes();
    let _span =
        profile::span(OP, dy_ro.dtype(), || work(w_eoi, offsets_e, bytes_of(&[dy_ro, w_eoi]) + dx_bytes));
    let mut dx_ri = Tensor::scratch(&[dy_ro.num_rows(), w_eoi.last_dim()], dy_ro.dtype(), dy_ro.device())?;
    match dy_ro.device() {
        Device::Cpu => cpu::grouped_matmul::backward_input(dy_ro, w_eoi, offsets_e, &mut dx_ri)?,
        device @ Device::Cuda(_) => return Err(Error::Unsupported { op: OP, device }),
    }
    Ok(dx_ri)
}

/// dw_eoi += dy_roᵀ·x_ri by group; dw is f32.
///
/// # Errors
/// Shapes, dtypes or offsets that do not fit; out of memory.
pub fn backward_weight(dy_ro: &Tensor, x_ri: &Tensor, offsets_e: &Tensor, dw_eoi: &mut Tensor) -> Result<()> {
    const OP: &str = "grouped_matmul_backward_weight";
    check::float(OP, "dy", dy_ro)?;
    check::dtype(OP, "x", x_ri, dy_ro.dtype())?;
    check::dtype(OP, "dw", dw_eoi, DType::F32)?;
    check::rank(OP, "dw", dw_eoi, 3)?;
    let [num_experts, o, i] = [dw_eoi.shape()[0], dw_eoi.shape()[1], dw_eoi.shape()[2]];
    check::shape(OP, "dy", dy_ro, &[dy_ro.num_rows(), o])?;
    check::shape(OP, "x", x_ri, &[dy_ro.num_rows(), i])?;
    check_offsets(OP, offsets_e, num_experts, dy_ro.num_rows())?;
    let bytes = || bytes_of(&[dy_ro, x_ri, &*dw_eoi, &*dw_eoi]);
    let _span = profile::span(OP, dy_ro.dtype(), || work(dw_eoi, offsets_e, bytes()));
    match dy_ro.device() {
        Device::Cpu => cpu::grouped_matmul::backward_weight(dy_ro, x_ri, offsets_e, dw_eoi),
        device @ Device::Cuda(_) => Err(Error::Unsupported { op: OP, device }),
    }
}

/// Rows behind the last offset are not multiplied.
fn work(w_eoi: &Tensor, offsets_e: &Tensor, bytes: usize) -> Work {
    let offsets = offsets_e.data::<i32>().unwrap_or_default();
    let r = offsets.last().map_or(0, |&rows| rows as usize);
    let [e, o, i] = [w_eoi.shape()[0], w_eoi.shape()[1], w_eoi.last_dim()];
    Work::products(&[e, r, o, i], 2 * r * o * i, bytes)
}

fn check_operands(op: &'static str, rows: &Tensor, w_eoi: &Tensor, offsets_e: &Tensor) -> Result<()> {
    check::float(op, "rows", rows)?;
    check::rank(op, "w", w_eoi, 3)?;
    check::dtype(op, "w", w_eoi, rows.dtype())?;
    check_offsets(op, offsets_e, w_eoi.shape()[0], rows.num_rows())
}

fn check_offsets(op: &'static str, offsets_e: &Tensor, num_experts: usize, num_rows: usize) -> Result<()> {
    check::shape(op, "offsets", offsets_e, &[num_experts + 1])?;
    let offsets = offsets_e.data::<i32>()?;
    let rising = offsets.windows(2).all(|pair| pair[0] <= pair[1]);
    let inside = offsets[0] == 0 && offsets[num_experts] as usize <= num_rows;
    if rising && inside {
        return Ok(());
    }
    Err(Error::Value {
        op,
        what: "offsets",
        got: format!("{offsets:?}"),
        expected: format!("rising from 0 to at most {num_rows}"),
    })
}
