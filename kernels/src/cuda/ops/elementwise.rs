//! Sums, scaling and casts.

use super::Operation;
use crate::cuda::Floats;
use crate::cuda::calls::elementwise as calls;
use crate::error::Result;
use crate::tensor::Tensor;

pub(crate) fn add(a: &Tensor, b: &Tensor, sum: &mut Tensor) -> Result<()> {
    let op = Operation::on("add", a)?;
    let call = calls::add(op.floats("a", a)?, op.read("b", b)?, op.write("sum", sum)?, a.num_elements());
    // SAFETY: the op checked that all three have one shape and dtype.
    unsafe { op.launch(&call) }
}

pub(crate) fn add_assign(a: &mut Tensor, b: &Tensor) -> Result<()> {
    let op = Operation::on("add_assign", a)?;
    let out = op.write("a", a)?;
    let call = calls::add(Floats { pointer: out, dtype: a.dtype() }, op.read("b", b)?, out, a.num_elements());
    // SAFETY: the op checked that both have one shape and dtype; the kernel may write over its operand.
    unsafe { op.launch(&call) }
}

pub(crate) fn scale_assign(a: &mut Tensor, factor: f32) -> Result<()> {
    let op = Operation::on("scale_assign", a)?;
    let out = op.write("a", a)?;
    let call = calls::scale(Floats { pointer: out, dtype: a.dtype() }, out, a.num_elements(), factor);
    // SAFETY: one tensor of floats; the kernel may write over its operand.
    unsafe { op.launch(&call) }
}

pub(crate) fn cast_into(x: &Tensor, out: &mut Tensor) -> Result<()> {
    if x.dtype() == out.dtype() {
        *out = x.clone();
        return Ok(());
    }
    let op = Operation::on("cast", x)?;
    let call = calls::cast(op.floats("x", x)?, op.write("out", out)?, x.num_elements());
    // SAFETY: the op checked that the shapes are one and both dtypes are floats; they differ here.
    unsafe { op.launch(&call) }
}
