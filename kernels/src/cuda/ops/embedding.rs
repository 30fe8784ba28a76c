//! Embedding look-up, and its gradient by sorted runs of tokens.

use super::Operation;
use crate::cuda::Floats;
use crate::cuda::calls::embedding as calls;
use crate::dtype::DType;
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

pub(crate) fn backward(dx_td: &Tensor, ids_t: &Tensor, dtable_vd: &mut Tensor) -> Result<()> {
    let op = Operation::on("embedding_backward", dx_td)?;
    let shape @ [t, v, d] = [ids_t.num_elements(), dtable_vd.num_rows(), dtable_vd.last_dim()];
    let device = dx_td.device();
    // Counts are u32, for which tensors have no dtype: i32 has their size.
    let integers = |n: usize| Tensor::scratch(&[n], DType::I32, device);
    let (mut counts, mut starts) = (integers(calls::num_counts(t))?, integers(calls::NUM_DIGITS)?);
    let [mut ids_a, mut tokens_a, mut ids_b, mut tokens_b] =
        [integers(t)?, integers(t)?, integers(t)?, integers(t)?];
    let buffers = calls::SortBuffers {
        counts: op.write("counts", &mut counts)?,
        starts: op.write("starts", &mut starts)?,
        pairs: [
            [op.write("sorted ids", &mut ids_a)?, op.write("sorted tokens", &mut tokens_a)?],
            [op.write("sorted ids", &mut ids_b)?, op.write("sorted tokens", &mut tokens_b)?],
        ],
    };
    let (sort, sorted) = calls::sort(op.read("ids", ids_t)?, &buffers, [t, v])?;
    let mut partials = Tensor::scratch(&[calls::num_partials(t), d], DType::F32, device)?;
    let partials_pointer = op.write("partials", &mut partials)?;
    let dtable = op.write("dtable", dtable_vd)?;
    let sums = calls::sums(op.floats("dx", dx_td)?, sorted, partials_pointer, dtable, shape)?;
    for call in sort.iter().chain(&sums) {
        // SAFETY: the op checked shapes and dtypes; all scratch has the sizes that the calls ask for; the kernels leave
        // out ids outside the table.
        unsafe { op.launch(call) }?;
    }
    Ok(())
}
