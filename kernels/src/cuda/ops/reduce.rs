//! Sums over whole tensors, and over the rows of a matrix.

use super::Operation;
use crate::cuda::calls::reduce::{self as calls, Term};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::tensor::Tensor;

/// Σ x or Σ x². The result comes to the host, which waits for it.
pub(crate) fn sum(name: &'static str, term: Term, x: &Tensor) -> Result<f64> {
    let op = Operation::on(name, x)?;
    let n = x.num_elements();
    let num_partials = calls::num_partial_sums(n, x.dtype());
    let (mut partials, mut total) = (doubles(num_partials, x.device())?, doubles(1, x.device())?);
    let partials_pointer = op.write("partials", &mut partials)?;
    let call = calls::partial_sums(term, op.floats("x", x)?, partials_pointer, n);
    // SAFETY: x holds n floats, and there is a partial for each block.
    unsafe { op.launch(&call) }?;
    let call = calls::finish_sum(partials_pointer, op.write("total", &mut total)?, num_partials);
    // SAFETY: the partials were just written, and the total is one f64.
    unsafe { op.launch(&call) }?;
    let total = total.to_device(Device::Cpu)?;
    let mut bytes = [0; 8];
    bytes.copy_from_slice(total.data::<u8>()?);
    Ok(f64::from_ne_bytes(bytes))
}

/// out_n += Σ over rows of x.
pub(crate) fn add_column_sums(name: &'static str, x: &Tensor, out_n: &mut Tensor) -> Result<()> {
    let op = Operation::on(name, x)?;
    let shape @ [_, n] = [x.num_rows(), x.last_dim()];
    let num_partials = calls::num_column_partials(shape, x.dtype());
    let mut partials = Tensor::scratch(&[num_partials, n], DType::F32, x.device())?;
    let partials_pointer = op.write("partials", &mut partials)?;
    let call = calls::column_sums(op.floats("x", x)?, partials_pointer, shape)?;
    // SAFETY: x has this shape, and there is a row of partials for each block in x.
    unsafe { op.launch(&call) }?;
    let call = calls::add_column_sums(partials_pointer, op.write("out", out_n)?, [num_partials, n])?;
    // SAFETY: the partials were just written, and out has n f32, as the op checked.
    unsafe { op.launch(&call) }
}

/// Room for `n` f64, which are no dtype of tensors.
fn doubles(n: usize, device: Device) -> Result<Tensor> {
    Tensor::scratch(&[n * size_of::<f64>()], DType::U8, device)
}
