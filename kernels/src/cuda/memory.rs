//! Memory of a GPU, taken and given back in the order of its stream, so that neither waits for the device.

use std::sync::{Arc, PoisonError};

use cudarc::driver::{DriverError, result, sys};

use super::device::Gpu;
use crate::error::{Error, Result};
use crate::pool::PoolStats;

/// What tensors hold of a device's memory, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    live_bytes: usize,
    peak_bytes: usize,
}

/// Current use of a device's memory by tensors. What the driver keeps for reuse is not counted: `cached_bytes` is 0.
///
/// # Errors
/// [`Error::Cuda`] when there is no such device.
pub fn stats(ordinal: usize) -> Result<PoolStats> {
    let gpu = Gpu::get(ordinal)?;
    let Usage { live_bytes, peak_bytes } = *gpu.usage.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(PoolStats { live_bytes, peak_bytes, cached_bytes: 0 })
}

/// Starts a new peak measurement at the current live size.
///
/// # Errors
/// As [`stats`].
pub fn reset_peak(ordinal: usize) -> Result<()> {
    let gpu = Gpu::get(ordinal)?;
    let mut usage = gpu.usage.lock().unwrap_or_else(PoisonError::into_inner);
    usage.peak_bytes = usage.live_bytes;
    Ok(())
}

/// A piece of a GPU's memory. Its contents are unspecified at first.
#[derive(Debug)]
pub(crate) struct Buffer {
    gpu: Arc<Gpu>,
    address: sys::CUdeviceptr,
    bytes: usize,
}

impl Buffer {
    /// Takes `bytes`, at least one.
    pub(crate) fn take(gpu: Arc<Gpu>, bytes: usize) -> Result<Self> {
        let bytes = bytes.max(1);
        gpu.bind()?;
        // SAFETY: the stream is live. Whatever uses the memory is put on the same stream, behind this.
        let address = unsafe { result::malloc_async(gpu.stream, bytes) };
        let mut usage = gpu.usage.lock().unwrap_or_else(PoisonError::into_inner);
        let address = match address {
            Ok(address) => address,
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                return Err(Error::OutOfMemory { bytes, live_bytes: usage.live_bytes });
            }
            Err(error) => return Err(gpu.failed(&format!("taking {bytes} bytes"), error)),
        };
        usage.live_bytes += bytes;
        usage.peak_bytes = usage.peak_bytes.max(usage.live_bytes);
        drop(usage);
        Ok(Buffer { gpu, address, bytes })
    }

    /// Where it begins.
    pub(crate) fn address(&self) -> sys::CUdeviceptr {
        self.address
    }

    /// Sets the first `bytes` to zero.
    pub(crate) fn fill_zero(&mut self, bytes: usize) -> Result<()> {
        self.gpu.bind()?;
        // SAFETY: the buffer holds `bytes` bytes, and nobody else writes to it.
        unsafe { result::memset_d8_async(self.address, 0, bytes.min(self.bytes), self.gpu.stream) }
            .map_err(|error| self.gpu.failed("setting memory to zero", error))
    }

    /// Copies host memory in. The source may go when this returns.
    pub(crate) fn upload(&mut self, source: &[u8]) -> Result<()> {
        self.check_len(source.len())?;
        self.gpu.bind()?;
        // SAFETY: the buffer holds this many bytes, and the wait below ends the copy before the source can go.
        unsafe { result::memcpy_htod_async(self.address, source, self.gpu.stream) }
            .map_err(|error| self.gpu.failed("copying to the device", error))?;
        self.gpu.synchronize()
    }

    /// Copies to host memory, when all earlier work is done.
    pub(crate) fn download(&self, target: &mut [u8]) -> Result<()> {
        self.check_len(target.len())?;
        self.gpu.bind()?;
        // SAFETY: the buffer holds this many bytes, and the wait below ends the copy before the target can be looked at.
        unsafe { result::memcpy_dtoh_async(target, self.address, self.gpu.stream) }
            .map_err(|error| self.gpu.failed("copying to the host", error))?;
        self.gpu.synchronize()
    }

    /// A buffer of its own with the same bytes.
    pub(crate) fn duplicate(&self) -> Result<Self> {
        let copy = Buffer::take(self.gpu.clone(), self.bytes)?;
        // SAFETY: both buffers hold this many bytes on one device and are distinct.
        unsafe { result::memcpy_dtod_async(copy.address, self.address, self.bytes, self.gpu.stream) }
            .map_err(|error| self.gpu.failed("copying on the device", error))?;
        Ok(copy)
    }

    fn check_len(&self, len: usize) -> Result<()> {
        if len <= self.bytes {
            return Ok(());
        }
        Err(Error::Cuda {
            during: format!("{}: copying {len} bytes", self.gpu.device()),
            detail: format!("the buffer holds {}", self.bytes),
        })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the memory came from this stream's pool and is given back once, behind all work that uses it. A failure
        // means that the context is gone, and the memory with it.
        let _ = self.gpu.bind().map(|()| unsafe { result::free_async(self.address, self.gpu.stream) });
        self.gpu.usage.lock().unwrap_or_else(PoisonError::into_inner).live_bytes -= self.bytes;
    }
}
