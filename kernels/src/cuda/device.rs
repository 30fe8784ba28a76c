//! One GPU: its context, its stream, and the kernels loaded on it.
//!
//! All work of a device goes to one stream in the order of the calls, so that no call waits for another and memory can be
//! reused as soon as the last launch that reads it is behind.

use std::collections::BTreeMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{result, sys};

use super::call::Call;
use super::library::{attribute, failed, start_driver};
use super::memory::Usage;
use super::sources::source;
use super::{module, sources};
use crate::device::Device;
use crate::error::{Error, Result};

/// The oldest architecture that the kernels are written for.
const OLDEST_CAPABILITY: (i32, i32) = (8, 0);

/// An opened GPU. It lives until the process ends.
#[derive(Debug)]
pub(crate) struct Gpu {
    ordinal: usize,
    context: sys::CUcontext,
    pub(super) stream: sys::CUstream,
    architecture: String,
    /// Loaded modules by source, functions by kernel.
    kernels: Mutex<Kernels>,
    /// What tensors hold of its memory.
    pub(super) usage: Mutex<Usage>,
}

// SAFETY: the driver's handles may be used from any thread; every use makes the context current on its own first.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

#[derive(Debug, Default)]
struct Kernels {
    modules: BTreeMap<&'static str, sys::CUmodule>,
    functions: BTreeMap<String, sys::CUfunction>,
}

impl Gpu {
    /// The GPU of this number, opened at its first use.
    pub(crate) fn get(ordinal: usize) -> Result<Arc<Gpu>> {
        static GPUS: Mutex<BTreeMap<usize, Arc<Gpu>>> = Mutex::new(BTreeMap::new());
        let mut gpus = GPUS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gpu) = gpus.get(&ordinal) {
            return Ok(gpu.clone());
        }
        let gpu = Arc::new(Gpu::open(ordinal)?);
        gpus.insert(ordinal, gpu.clone());
        Ok(gpu)
    }

    fn open(ordinal: usize) -> Result<Gpu> {
        use sys::CUdevice_attribute as Attribute;
        start_driver()?;
        let during = |call: &str| format!("opening cuda:{ordinal}: {call}");
        let number = i32::try_from(ordinal).unwrap_or(i32::MAX);
        let device = result::device::get(number).map_err(|error| failed(during("cuDeviceGet"), error))?;
        let major = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        if (major, minor) < OLDEST_CAPABILITY {
            let detail =
                format!("its compute capability is {major}.{minor}; the kernels need 8.0 (Ampere) or newer");
            return Err(Error::Cuda { during: during("compute capability"), detail });
        }
        // SAFETY: the device was just given by the driver. The context is never released: it lives as long as the process.
        let context = unsafe { result::primary_ctx::retain(device) }
            .map_err(|error| failed(during("cuDevicePrimaryCtxRetain"), error))?;
        // SAFETY: the context is live.
        unsafe { result::ctx::set_current(context) }
            .map_err(|error| failed(during("cuCtxSetCurrent"), error))?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(|error| failed(during("cuStreamCreate"), error))?;
        keep_freed_memory(device).map_err(|error| failed(during("cuMemPoolSetAttribute"), error))?;
        Ok(Gpu {
            ordinal,
            context,
            stream,
            architecture: architecture(major, minor),
            kernels: Mutex::default(),
            usage: Mutex::default(),
        })
    }

    /// As a tensor names it.
    pub(crate) fn device(&self) -> Device {
        Device::Cuda(self.ordinal)
    }

    /// Makes the context current on this thread, as every call of the driver needs.
    pub(super) fn bind(&self) -> Result<()> {
        // SAFETY: the context is live.
        unsafe { result::ctx::set_current(self.context) }
            .map_err(|error| self.failed("cuCtxSetCurrent", error))
    }

    /// Waits for all work of the stream. Here a kernel's own fault comes to light.
    pub(crate) fn synchronize(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream is live.
        unsafe { result::stream::synchronize(self.stream) }
            .map_err(|error| self.failed("waiting for the kernels before this", error))
    }

    /// Puts a launch behind all earlier work. One of no blocks is left out.
    ///
    /// # Safety
    /// The call's pointers are to memory of this device, live and large enough for what the kernel does with them, and what
    /// it writes belongs to the caller alone.
    pub(super) unsafe fn launch(&self, op: &'static str, call: &Call) -> Result<()> {
        if call.launch.is_empty() {
            return Ok(());
        }
        self.bind()?;
        let function = self.function(call)?;
        let mut arguments: Vec<*mut c_void> =
            call.arguments.iter().map(|argument| argument.address()).collect();
        let [grid, block] = [call.launch.grid, call.launch.block].map(|[x, y, z]| (x, y, z));
        // SAFETY: the addresses are of values that live in `call`; their number and types are those of the kernel, which
        // the tests on the host hold against its declaration; the rest is the caller's promise.
        unsafe {
            result::launch_kernel(
                function,
                grid,
                block,
                call.launch.shared_bytes,
                self.stream,
                &mut arguments,
            )
        }
        .map_err(|error| self.failed(&format!("{op}: {call}"), error))
    }

    /// Puts a copy of `bytes` behind all earlier work.
    ///
    /// # Safety
    /// Both addresses are of live memory of this device with as many bytes, which do not overlap, and what is written
    /// belongs to the caller alone.
    pub(super) unsafe fn copy(&self, op: &'static str, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream is live; the rest is the caller's promise.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) }
            .map_err(|error| self.failed(&format!("{op}: copying {bytes} bytes"), error))
    }

    fn function(&self, call: &Call) -> Result<sys::CUfunction> {
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = kernels.functions.get(&call.kernel) {
            return Ok(*function);
        }
        let module = match kernels.modules.get(call.source) {
            Some(module) => *module,
            None => {
                let module = self.load(call.source)?;
                kernels.modules.insert(call.source, module);
                module
            }
        };
        let during = format!("loading {} of {}", call.kernel, call.source);
        let name = CString::new(call.kernel.as_str())
            .map_err(|error| Error::Cuda { during: during.clone(), detail: error.to_string() })?;
        // SAFETY: the module is live and never unloaded.
        let function = unsafe { result::module::get_function(module, name) }
            .map_err(|error| self.failed(&during, error))?;
        // A launch that wants more than this limit needs to be allowed it once.
        const ALWAYS_ALLOWED_BYTES: u32 = 48 << 10;
        if call.launch.shared_bytes > ALWAYS_ALLOWED_BYTES {
            use sys::CUfunction_attribute as Attribute;
            let limit = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is live.
            unsafe {
                result::function::set_function_attribute(function, limit, call.launch.shared_bytes as i32)
            }
            .map_err(|error| self.failed(&format!("{during}: shared memory"), error))?;
        }
        kernels.functions.insert(call.kernel.clone(), function);
        Ok(function)
    }

    fn load(&self, name: &'static str) -> Result<sys::CUmodule> {
        let source: &sources::Source = source(name).ok_or_else(|| Error::Cuda {
            during: format!("loading {name}"),
            detail: "this program carries no such source".to_owned(),
        })?;
        let code = module::cubin(source, &self.architecture, module::cache_folder().as_deref())?;
        // SAFETY: the image is a whole ELF file, checked when it came from disk; the driver copies it.
        unsafe { result::module::load_data(code.as_ptr().cast()) }
            .map_err(|error| self.failed(&format!("loading {name} for {}", self.architecture), error))
    }

    /// A refused call, with the device's name.
    pub(super) fn failed(&self, during: &str, error: cudarc::driver::DriverError) -> Error {
        failed(format!("{}: {during}", self.device()), error)
    }
}

/// Architectures whose own instructions the kernels use carry an `a`.
fn architecture(major: i32, minor: i32) -> String {
    let own = if (major, minor) == (9, 0) { "a" } else { "" };
    format!("sm_{major}{minor}{own}")
}

/// Freed memory stays with the stream-ordered pool for the next step instead of going back to the system.
fn keep_freed_memory(device: sys::CUdevice) -> std::result::Result<(), cudarc::driver::DriverError> {
    let mut all = u64::MAX;
    // SAFETY: the device is live, and the attribute is a u64, which is only read.
    unsafe {
        let pool = result::device::get_default_mem_pool(device)?;
        let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, threshold, std::ptr::from_mut(&mut all).cast())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hopper_is_compiled_for_with_its_own_instructions() {
        assert_eq!(architecture(8, 6), "sm_86");
        assert_eq!(architecture(9, 0), "sm_90a");
        assert_eq!(architecture(12, 0), "sm_120");
    }
}
