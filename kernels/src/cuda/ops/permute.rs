//! Moving rows between token order and expert order.

use super::Operation;
use crate::cuda::calls::permute as calls;
use crate::error::Result;
use crate::tensor::Tensor;

pub(crate) fn gather(x_td: &Tensor, rows_r: &Tensor, x_rd: &mut Tensor) -> Result<()> {
    let op = Operation::on("gather", x_td)?;
    let shape = [x_rd.num_rows(), x_rd.last_dim()];
    let call = calls::gather(op.floats("x", x_td)?, op.read("rows", rows_r)?, op.write("out", x_rd)?, shape)?;
    // SAFETY: the op checked the shapes; that the indices are rows of x is the plan's promise.
    unsafe { op.launch(&call) }
}

pub(crate) fn gather_sum(y_rd: &Tensor, token_rows_tk: &Tensor, out_td: &mut Tensor) -> Result<()> {
    let op = Operation::on("gather_sum", y_rd)?;
    let shape = [out_td.num_rows(), token_rows_tk.last_dim(), out_td.last_dim()];
    let rows = op.read("token_rows", token_rows_tk)?;
    let call = calls::gather_sum(op.floats("y", y_rd)?, rows, op.write("out", out_td)?, shape)?;
    // SAFETY: as in `gather`.
    unsafe { op.launch(&call) }
}
