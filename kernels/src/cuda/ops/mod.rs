//! The operations' bodies on a GPU, by the names of `cpu`: tensors in, kernel calls out.

use std::ffi::c_void;
use std::sync::Arc;

use super::device::Gpu;
use super::{Argument, Call, Floats};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

pub(crate) mod adamw;
pub(crate) mod attention;
pub(crate) mod bias;
pub(crate) mod cross_entropy;
pub(crate) mod elementwise;
pub(crate) mod embedding;
pub(crate) mod permute;
pub(crate) mod reduce;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod router;
pub(crate) mod routing_load;
pub(crate) mod routing_plan;
pub(crate) mod swiglu;

/// One operation on one GPU: gives out the addresses of its tensors, and launches.
struct Operation {
    name: &'static str,
    gpu: Arc<Gpu>,
}

impl Operation {
    /// The operation on the device of `tensor`.
    fn on(name: &'static str, tensor: &Tensor) -> Result<Self> {
        match tensor.device() {
            Device::Cuda(ordinal) => Ok(Operation { name, gpu: Gpu::get(ordinal)? }),
            got => Err(Error::Placement { op: name, what: "tensor", got, expected: Device::Cuda(0) }),
        }
    }

    fn read(&self, what: &'static str, tensor: &Tensor) -> Result<Argument> {
        tensor.device_address(self.name, what, self.gpu.device()).map(pointer)
    }

    /// Null where there is no tensor.
    fn read_optional(&self, what: &'static str, tensor: Option<&Tensor>) -> Result<Argument> {
        tensor.map_or(Ok(Argument::NULL), |tensor| self.read(what, tensor))
    }

    /// A tensor whose dtype picks the kernel.
    fn floats(&self, what: &'static str, tensor: &Tensor) -> Result<Floats> {
        Ok(Floats { pointer: self.read(what, tensor)?, dtype: tensor.dtype() })
    }

    /// A shared tensor is copied first, so ask for this before reading from the same.
    fn write(&self, what: &'static str, tensor: &mut Tensor) -> Result<Argument> {
        tensor.device_address_mut(self.name, what, self.gpu.device()).map(pointer)
    }

    /// Copies whole rows, from row `first` on of one tensor to row `to_first` on of another with rows as long.
    fn copy_rows(
        &self,
        from: &Tensor,
        first: usize,
        to: &mut Tensor,
        to_first: usize,
        count: usize,
    ) -> Result<()> {
        let fits = |tensor: &Tensor, first: usize| first + count <= tensor.num_rows();
        let row_bytes = |tensor: &Tensor| tensor.last_dim() * tensor.dtype().size_in_bytes();
        if row_bytes(from) != row_bytes(to) || !fits(from, first) || !fits(to, to_first) {
            let expected = format!("rows {first} to {} of {:?}", first + count, to.shape());
            return Err(Error::Shape { op: self.name, what: "rows", got: from.shape().to_vec(), expected });
        }
        let offset = |row: usize| (row * row_bytes(from)) as u64;
        let source = from.device_address(self.name, "rows", self.gpu.device())? + offset(first);
        let target = to.device_address_mut(self.name, "rows", self.gpu.device())? + offset(to_first);
        // SAFETY: both tensors have these bytes, as was just checked, and `to` is nobody else's.
        unsafe { self.gpu.copy(self.name, source, target, count * row_bytes(from)) }
    }

    /// # Safety
    /// The pointers come from this operation's `read` and `write`, of tensors that are still held and whose shapes and
    /// dtypes are those that the call was made for.
    unsafe fn launch(&self, call: &Call) -> Result<()> {
        // SAFETY: memory of tensors is given back in the order of the stream, behind this launch; `write` gave what no
        // other tensor shares; the sizes are the caller's promise.
        unsafe { self.gpu.launch(self.name, call) }
    }
}

fn pointer(address: u64) -> Argument {
    Argument::Pointer(address as usize as *mut c_void)
}
