//! The tensor: a contiguous, row-major array of one dtype on one device, cheap to clone.

use std::sync::Arc;

use crate::cuda;
use crate::device::Device;
use crate::dtype::{DType, Element, bf16};
use crate::error::{Error, Result};
use crate::pool;
use crate::profile::{self, Work};

/// The most dimensions a tensor can have.
pub const MAX_RANK: usize = 4;

/// A contiguous row-major array. Clones share the memory; writing to a shared tensor copies it first.
#[derive(Clone, Debug)]
pub struct Tensor {
    storage: Arc<Storage>,
    dims: [usize; MAX_RANK],
    rank: usize,
    dtype: DType,
    device: Device,
}

/// The memory of a tensor.
#[derive(Debug)]
enum Storage {
    Host(pool::Buffer),
    Cuda(cuda::memory::Buffer),
}

impl Storage {
    fn take(bytes: usize, device: Device) -> Result<Self> {
        Ok(match device {
            Device::Cpu => Storage::Host(pool::Buffer::take(bytes)?),
            Device::Cuda(ordinal) => {
                Storage::Cuda(cuda::memory::Buffer::take(cuda::device::Gpu::get(ordinal)?, bytes)?)
            }
        })
    }
}

impl Tensor {
    /// A tensor of zeros.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Shape`] for more than four dimensions; [`Error::Cuda`] when the device is not there.
    pub fn zeros(shape: &[usize], dtype: DType, device: Device) -> Result<Self> {
        let mut tensor = Self::scratch(shape, dtype, device)?;
        let is_zero = matches!(&*tensor.storage, Storage::Host(buffer) if buffer.zeroed);
        if !is_zero {
            tensor.fill_zero()?;
        }
        Ok(tensor)
    }

    /// A tensor whose contents are unspecified: for outputs that are written whole.
    ///
    /// # Errors
    /// As [`Tensor::zeros`].
    pub fn scratch(shape: &[usize], dtype: DType, device: Device) -> Result<Self> {
        let (dims, rank) = pack_shape(shape)?;
        let bytes = shape
            .iter()
            .try_fold(dtype.size_in_bytes(), |bytes, &dim| bytes.checked_mul(dim))
            .ok_or(Error::OutOfMemory { bytes: usize::MAX, live_bytes: crate::pool::stats().live_bytes })?;
        Ok(Tensor { storage: Arc::new(Storage::take(bytes, device)?), dims, rank, dtype, device })
    }

    /// Copies `data` into a new tensor on the host.
    ///
    /// # Errors
    /// [`Error::Shape`] when `shape` does not hold `data.len()` elements; [`Error::OutOfMemory`].
    pub fn from_slice<T: Element>(data: &[T], shape: &[usize]) -> Result<Self> {
        if shape.iter().product::<usize>() != data.len() {
            return Err(Error::Shape {
                op: "from_slice",
                what: "shape",
                got: shape.to_vec(),
                expected: format!("{} elements", data.len()),
            });
        }
        let mut tensor = Self::scratch(shape, T::DTYPE, Device::Cpu)?;
        tensor.data_mut::<T>()?.copy_from_slice(data);
        Ok(tensor)
    }

    /// The size of each dimension.
    pub fn shape(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// The number of elements.
    pub fn num_elements(&self) -> usize {
        self.shape().iter().product()
    }

    /// The size of the last dimension (1 for a scalar).
    pub fn last_dim(&self) -> usize {
        self.shape().last().copied().unwrap_or(1)
    }

    /// The number of rows when all dimensions but the last are folded into one.
    pub fn num_rows(&self) -> usize {
        self.shape()[..self.rank.saturating_sub(1)].iter().product()
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where the tensor lives.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Size of the elements in bytes.
    pub fn size_in_bytes(&self) -> usize {
        self.num_elements() * self.dtype.size_in_bytes()
    }

    /// The elements, row-major.
    ///
    /// # Errors
    /// [`Error::DType`] when the tensor holds another type; [`Error::Placement`] when it is not on the host.
    pub fn data<T: Element>(&self) -> Result<&[T]> {
        self.expect_dtype::<T>()?;
        match &*self.storage {
            Storage::Host(buffer) => {
                // SAFETY: the buffer holds at least num_elements initialised values of T, aligned to 64 bytes, and
                // every bit pattern is a valid T; the borrow of self keeps it alive and unwritten.
                Ok(unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<T>(), self.num_elements()) })
            }
            Storage::Cuda(_) => Err(self.misplaced("data", "tensor", Device::Cpu)),
        }
    }

    /// The elements for writing. A shared tensor is copied first, so that no other holder sees the change.
    ///
    /// # Errors
    /// As [`Tensor::data`]; [`Error::OutOfMemory`] when a copy does not fit.
    pub fn data_mut<T: Element>(&mut self) -> Result<&mut [T]> {
        self.expect_dtype::<T>()?;
        if self.device != Device::Cpu {
            return Err(self.misplaced("data_mut", "tensor", Device::Cpu));
        }
        let (len, misplaced) = (self.num_elements(), self.misplaced("data_mut", "tensor", Device::Cpu));
        match self.unique()? {
            Storage::Host(buffer) => {
                // SAFETY: as in `data`, and `unique` made this tensor the buffer's only holder.
                Ok(unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast::<T>(), len) })
            }
            Storage::Cuda(_) => Err(misplaced),
        }
    }

    /// The same elements on `device`; shares the memory when they are there already. Between two GPUs the way leads over
    /// the host.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Cuda`] when a device is missing or a copy fails.
    pub fn to_device(&self, device: Device) -> Result<Self> {
        if self.device == device {
            return Ok(self.clone());
        }
        let mut moved = Self::scratch(self.shape(), self.dtype, device)?;
        let bytes = self.size_in_bytes();
        match (&*self.storage, moved.unique()?) {
            (Storage::Host(source), Storage::Cuda(target)) => {
                // SAFETY: the buffer holds this many initialised bytes; the borrow of self keeps it alive and unwritten.
                target.upload(unsafe { std::slice::from_raw_parts(source.as_ptr(), bytes) })?;
            }
            (Storage::Cuda(source), Storage::Host(target)) => {
                // SAFETY: the buffer holds this many initialised bytes and is nobody else's.
                source.download(unsafe { std::slice::from_raw_parts_mut(target.as_mut_ptr(), bytes) })?;
            }
            _ => return self.to_device(Device::Cpu)?.to_device(device),
        }
        Ok(moved)
    }

    /// Where the elements begin on a GPU, for a kernel that reads them.
    pub(crate) fn device_address(&self, op: &'static str, what: &'static str, device: Device) -> Result<u64> {
        match &*self.storage {
            Storage::Cuda(buffer) if self.device == device => Ok(buffer.address()),
            _ => Err(self.misplaced(op, what, device)),
        }
    }

    /// As [`Tensor::device_address`], for a kernel that writes them: a shared tensor is copied first.
    pub(crate) fn device_address_mut(
        &mut self,
        op: &'static str,
        what: &'static str,
        device: Device,
    ) -> Result<u64> {
        if self.device != device {
            return Err(self.misplaced(op, what, device));
        }
        self.unique()?;
        self.device_address(op, what, device)
    }

    fn misplaced(&self, op: &'static str, what: &'static str, expected: Device) -> Error {
        Error::Placement { op, what, got: self.device, expected }
    }

    /// The same elements under another shape; shares the memory.
    ///
    /// # Errors
    /// [`Error::Shape`] when the number of elements differs.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        if shape.iter().product::<usize>() != self.num_elements() {
            return Err(Error::Shape {
                op: "reshape",
                what: "tensor",
                got: self.shape().to_vec(),
                expected: format!("the number of elements of {shape:?}"),
            });
        }
        let (dims, rank) = pack_shape(shape)?;
        Ok(Tensor { dims, rank, ..self.clone() })
    }

    /// The leading elements under `shape`, which may hold fewer than this tensor; shares the memory.
    ///
    /// # Errors
    /// [`Error::Shape`] when `shape` holds more elements.
    pub fn leading(&self, shape: &[usize]) -> Result<Self> {
        if shape.iter().product::<usize>() > self.num_elements() {
            return Err(Error::Shape {
                op: "leading",
                what: "tensor",
                got: self.shape().to_vec(),
                expected: format!("at least the number of elements of {shape:?}"),
            });
        }
        let (dims, rank) = pack_shape(shape)?;
        Ok(Tensor { dims, rank, ..self.clone() })
    }

    /// Sets every byte to zero.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the tensor is shared and a copy does not fit.
    pub fn fill_zero(&mut self) -> Result<()> {
        let bytes = self.size_in_bytes();
        let _span = profile::span("fill_zero", self.dtype(), || Work::pass(bytes));
        match self.unique()? {
            // SAFETY: the buffer holds `bytes` bytes and is uniquely held.
            Storage::Host(buffer) => unsafe { std::ptr::write_bytes(buffer.as_mut_ptr(), 0, bytes) },
            Storage::Cuda(buffer) => buffer.fill_zero(bytes)?,
        }
        Ok(())
    }

    /// The values as f32, for tests, printing and export; f32 and bf16 only. From a GPU they are copied over.
    ///
    /// # Errors
    /// [`Error::DType`] for integer tensors; [`Error::Cuda`] when a copy fails.
    pub fn to_f32_vec(&self) -> Result<Vec<f32>> {
        if self.device != Device::Cpu {
            return self.to_device(Device::Cpu)?.to_f32_vec();
        }
        match self.dtype {
            DType::Bf16 => Ok(self.data::<bf16>()?.iter().map(|x| x.to_f32()).collect()),
            _ => Ok(self.data::<f32>()?.to_vec()),
        }
    }

    fn expect_dtype<T: Element>(&self) -> Result<()> {
        if self.dtype == T::DTYPE {
            return Ok(());
        }
        Err(Error::DType { op: "data", what: "tensor", got: self.dtype, expected: T::DTYPE.name() })
    }

    fn unique(&mut self) -> Result<&mut Storage> {
        if Arc::get_mut(&mut self.storage).is_none() {
            let copy = match &*self.storage {
                Storage::Host(buffer) => {
                    let bytes = self.size_in_bytes();
                    let mut copy = pool::Buffer::take(bytes)?;
                    // SAFETY: both buffers hold at least `bytes` bytes and are distinct allocations.
                    unsafe { std::ptr::copy_nonoverlapping(buffer.as_ptr(), copy.as_mut_ptr(), bytes) };
                    Storage::Host(copy)
                }
                Storage::Cuda(buffer) => Storage::Cuda(buffer.duplicate()?),
            };
            self.storage = Arc::new(copy);
        }
        match Arc::get_mut(&mut self.storage) {
            Some(storage) => Ok(storage),
            None => unreachable!("the storage was just made this tensor's own, and no weak references exist"),
        }
    }
}

fn pack_shape(shape: &[usize]) -> Result<([usize; MAX_RANK], usize)> {
    if shape.len() > MAX_RANK {
        return Err(Error::Shape {
            op: "tensor",
            what: "shape",
            got: shape.to_vec(),
            expected: format!("at most {MAX_RANK} dimensions"),
        });
    }
    let mut dims = [1; MAX_RANK];
    dims[..shape.len()].copy_from_slice(shape);
    Ok((dims, shape.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_to_a_shared_tensor_leaves_the_other_holder_alone() {
        let a = Tensor::from_slice(&[1.0f32, 2.0], &[2]).unwrap();
        let mut b = a.clone();
        b.data_mut::<f32>().unwrap()[0] = 9.0;
        assert_eq!(a.data::<f32>().unwrap(), [1.0, 2.0]);
        assert_eq!(b.data::<f32>().unwrap(), [9.0, 2.0]);
    }

    #[test]
    fn zeros_are_zero_after_reuse_of_a_dirty_buffer() {
        for _ in 0..3 {
            let mut t = Tensor::zeros(&[1000], DType::F32, Device::Cpu).unwrap();
            assert!(t.data::<f32>().unwrap().iter().all(|&x| x == 0.0));
            t.data_mut::<f32>().unwrap().fill(7.0);
        }
    }

    #[test]
    fn a_wrong_dtype_names_both_types() {
        let t = Tensor::zeros(&[2], DType::I32, Device::Cpu).unwrap();
        assert_eq!(t.data::<f32>().unwrap_err().to_string(), "data: tensor is i32, expected f32");
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error_that_says_so() {
        let t = Tensor::zeros(&[2], DType::F32, Device::Cpu).unwrap();
        let error = t.to_device(Device::Cuda(1 << 20)).unwrap_err();
        assert!(matches!(error, Error::Cuda { .. }), "{error}");
    }

    #[test]
    fn a_host_tensor_among_those_of_a_device_is_named() {
        let t = Tensor::zeros(&[2], DType::F32, Device::Cpu).unwrap();
        let error = t.device_address("add", "b", Device::Cuda(0)).unwrap_err();
        assert_eq!(error.to_string(), "add: b is on cpu, expected on cuda:0; move it with Tensor::to_device");
    }

    #[test]
    fn reshape_refuses_another_size() {
        let t = Tensor::zeros(&[2, 3], DType::F32, Device::Cpu).unwrap();
        assert!(t.reshape(&[7]).is_err());
        assert_eq!(t.reshape(&[3, 2]).unwrap().shape(), [3, 2]);
    }
}
