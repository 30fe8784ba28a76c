//! Bias of a projection.

use super::Operation;
use crate::cuda::Floats;
use crate::cuda::calls::elementwise as calls;
use crate::error::Result;
use crate::tensor::Tensor;

pub(crate) fn forward(x: &mut Tensor, bias_n: &Tensor) -> Result<()> {
    let op = Operation::on("bias", x)?;
    let y = op.write("x", x)?;
    let shape = [x.num_rows(), x.last_dim()];
    let call = calls::bias(Floats { pointer: y, dtype: x.dtype() }, op.read("bias", bias_n)?, y, shape)?;
    // SAFETY: the op checked that x is rows of floats as long as the f32 bias; the kernel may write over x.
    unsafe { op.launch(&call) }
}
