//! Rotary position embedding.

use super::Operation;
use crate::cuda::Floats;
use crate::cuda::calls::rope as calls;
use crate::error::Result;
use crate::tensor::Tensor;

/// The table's `cos` and `sin` lie on the device of x.
pub(crate) fn rotate(
    x_bthd: &mut Tensor,
    cos: &Tensor,
    sin: &Tensor,
    start_position: usize,
    back: bool,
) -> Result<()> {
    let op = Operation::on("rope", x_bthd)?;
    let x = Floats { pointer: op.write("x", x_bthd)?, dtype: x_bthd.dtype() };
    let (cos_pointer, sin_pointer) = (op.read("the table", cos)?, op.read("the table", sin)?);
    let mut shape = [0; 4];
    shape.copy_from_slice(x_bthd.shape());
    let rotation = calls::Rotation { shape, half: cos.last_dim(), start_position, back };
    let call = calls::rotate(x, cos_pointer, sin_pointer, &rotation)?;
    // SAFETY: the op checked that x has four dimensions, heads as long as what turns, and positions within the table.
    unsafe { op.launch(&call) }
}
