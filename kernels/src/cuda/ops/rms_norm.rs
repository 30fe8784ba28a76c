//! Root-mean-square normalisation.

use super::Operation;
use crate::cuda::Argument;
use crate::cuda::calls::{reduce, rms_norm as calls};
use crate::dtype::DType;
use crate::error::Result;
use crate::tensor::Tensor;

pub(crate) fn forward(x: &Tensor, w_d: &Tensor, eps: f32, y: &mut Tensor, rstd_t: &mut Tensor) -> Result<()> {
    let op = Operation::on("rms_norm", x)?;
    let buffers = calls::Forward {
        x: op.floats("x", x)?,
        residual: Argument::NULL,
        w: op.floats("w", w_d)?,
        sum: Argument::NULL,
        y: op.write("y", y)?,
        rstd: op.write("rstd", rstd_t)?,
    };
    let call = calls::forward(&buffers, [x.num_rows(), x.last_dim()], eps)?;
    // SAFETY: the op checked shapes and dtypes.
    unsafe { op.launch(&call) }
}

pub(crate) fn backward(
    dy: &Tensor,
    x: &Tensor,
    w_d: &Tensor,
    rstd_t: &Tensor,
    dw_d: &mut Tensor,
    dx: &mut Tensor,
    accumulate: bool,
) -> Result<()> {
    let op = Operation::on("rms_norm_backward", x)?;
    let shape @ [_, d] = [x.num_rows(), x.last_dim()];
    let num_partials = calls::num_partials(shape, x.dtype())?;
    let mut partials = Tensor::scratch(&[num_partials, d], DType::F32, x.device())?;
    let partials_pointer = op.write("partials", &mut partials)?;
    let buffers = calls::Backward {
        dy: op.floats("dy", dy)?,
        x: op.read("x", x)?,
        w: op.floats("w", w_d)?,
        rstd: op.read("rstd", rstd_t)?,
        dx: op.write("dx", dx)?,
        partials: partials_pointer,
    };
    let call = calls::backward(&buffers, shape, accumulate)?;
    // SAFETY: the op checked shapes and dtypes; the partials have as many rows as the kernel has blocks.
    unsafe { op.launch(&call) }?;
    let call =
        reduce::add_column_sums(op.read("partials", &partials)?, op.write("dw", dw_d)?, [num_partials, d])?;
    // SAFETY: the partials were just written, and dw has as many elements as they have columns.
    unsafe { op.launch(&call) }
}
