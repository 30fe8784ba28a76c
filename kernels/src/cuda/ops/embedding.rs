//! Embedding look-up.

use super::Operation;
use crate::cuda::Floats;
use crate::cuda::calls::embedding as calls;
use crate::error::Result;
use crate::tensor::Tensor;

pub(crate) fn forward(ids_t: &Tensor, table_vd: &Tensor, x_td: &mut Tensor) -> Result<()> {
    let op = Operation::on("embedding", table_vd)?;
    let shape = [ids_t.num_elements(), table_vd.num_rows(), table_vd.last_dim()];
    let x = Floats { pointer: op.write("x", x_td)?, dtype: x_td.dtype() };
    let call = calls::forward(op.read("ids", ids_t)?, op.floats("table", table_vd)?, x, shape)?;
    // SAFETY: the op checked shapes and dtypes; the kernel does not follow an id outside the table.
    unsafe { op.launch(&call) }
}
