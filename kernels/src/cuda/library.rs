//! Which CUDA libraries this machine has. They are looked for before they are called: the binding panics otherwise.

use std::sync::OnceLock;

use cudarc::{cublaslt, driver, nvrtc};

use crate::error::{Error, Result};

/// The oldest CUDA whose driver has every function called here, as the driver writes it: 1000·major + 10·minor.
const OLDEST_CUDA: i32 = 12_000;

/// What [`status`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The driver, NVRTC and cuBLASLt, in this order.
    pub libraries: [Library; 3],
    /// The GPUs that the driver shows.
    pub devices: Vec<DeviceInfo>,
    /// Why the driver shows none although it is there, in CUDA's words.
    pub problem: Option<String>,
}

/// One shared library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    /// Its name, without what a system puts around it.
    pub name: &'static str,
    /// Its version; none when it is missing.
    pub version: Option<String>,
    /// What to do when it is missing.
    pub remedy: Option<&'static str>,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// CUDA's number for it.
    pub ordinal: usize,
    /// Its product name.
    pub name: String,
    /// Major and minor.
    pub compute_capability: (i32, i32),
    /// All of its memory.
    pub memory_bytes: usize,
}

/// Looks at libraries and devices. Without CUDA it says so and what to do; it does not fail.
pub fn status() -> Status {
    let libraries = [
        library("cuda", driver_version(), DRIVER_REMEDY),
        library("nvrtc", nvrtc_version().map(|(major, minor)| format!("{major}.{minor}")), NVRTC_REMEDY),
        library("cublasLt", cublaslt_version(), CUBLASLT_REMEDY),
    ];
    let (devices, problem) = match devices() {
        Ok(devices) => (devices, None),
        Err(_) if !has_driver() => (Vec::new(), None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    Status { libraries, devices, problem }
}

const DRIVER_REMEDY: &str =
    "install the NVIDIA driver 525 or newer; in a container, start it with the GPUs passed in";
const NVRTC_REMEDY: &str = "install NVRTC (CUDA toolkit 12 or 13, or the package nvidia-cuda-nvrtc) and put its folder on LD_LIBRARY_PATH";
const CUBLASLT_REMEDY: &str = "install cuBLAS (CUDA toolkit 12 or 13, or the package nvidia-cublas) and put its folder on LD_LIBRARY_PATH";

fn library(name: &'static str, version: Option<String>, remedy: &'static str) -> Library {
    let remedy = version.is_none().then_some(remedy);
    Library { name, version, remedy }
}

fn has_driver() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: opens the library by its own name and closes it; its initialisers are meant to run in any process.
    *PRESENT.get_or_init(|| unsafe { driver::sys::is_culib_present() })
}

fn has_nvrtc() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: as in `has_driver`.
    *PRESENT.get_or_init(|| unsafe { nvrtc::sys::is_culib_present() })
}

fn has_cublaslt() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: as in `has_driver`.
    *PRESENT.get_or_init(|| unsafe { cublaslt::sys::is_culib_present() })
}

fn driver_version_number() -> Option<i32> {
    let mut version = 0;
    // SAFETY: the library is there, and the call writes one int; it needs no initialisation.
    let found = has_driver() && unsafe { driver::sys::cuDriverGetVersion(&mut version) }.result().is_ok();
    found.then_some(version)
}

fn driver_version() -> Option<String> {
    driver_version_number().map(|version| format!("CUDA {}.{}", version / 1000, version % 1000 / 10))
}

/// Major and minor version of NVRTC; none when it is missing.
pub(super) fn nvrtc_version() -> Option<(i32, i32)> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is there, and the call writes two ints.
    let found = has_nvrtc() && unsafe { nvrtc::sys::nvrtcVersion(&mut major, &mut minor) }.result().is_ok();
    found.then_some((major, minor))
}

fn cublaslt_version() -> Option<String> {
    if !has_cublaslt() {
        return None;
    }
    // SAFETY: the library is there, and the call takes nothing.
    let version = unsafe { cublaslt::sys::cublasLtGetVersion() };
    // 1000·major + 100·minor + patch up to 11, with one digit more from 12 on.
    let unit = if version >= 100_000 { 10_000 } else { 1_000 };
    Some(format!("{}.{}.{}", version / unit, version % unit / 100, version % 100))
}

/// Refuses to go on without a driver that is new enough, and starts it.
pub(super) fn start_driver() -> Result<()> {
    let missing = |detail: String| Err(Error::Cuda { during: "starting the driver".to_owned(), detail });
    match driver_version_number() {
        None => missing(format!("there is no libcuda; {DRIVER_REMEDY}")),
        Some(version) if version < OLDEST_CUDA => {
            missing(format!("the driver is for CUDA {}; {DRIVER_REMEDY}", version / 1000))
        }
        Some(_) => driver::result::init().map_err(|error| failed("cuInit", error)),
    }
}

/// Refuses to go on without NVRTC, and gives its version.
pub(super) fn require_nvrtc() -> Result<(i32, i32)> {
    nvrtc_version().ok_or_else(|| Error::Cuda {
        during: "compiling kernels".to_owned(),
        detail: format!("there is no libnvrtc; {NVRTC_REMEDY}"),
    })
}

/// A call that the driver refused, in the driver's words.
pub(super) fn failed(during: impl Into<String>, error: driver::DriverError) -> Error {
    let text = error
        .error_string()
        .map_or_else(|_| format!("{:?}", error.0), |text| text.to_string_lossy().into_owned());
    Error::Cuda { during: during.into(), detail: format!("{:?}: {text}", error.0) }
}

fn devices() -> Result<Vec<DeviceInfo>> {
    start_driver()?;
    let count = driver::result::device::get_count().map_err(|error| failed("cuDeviceGetCount", error))?;
    (0..count).map(describe).collect()
}

fn describe(ordinal: i32) -> Result<DeviceInfo> {
    use driver::sys::CUdevice_attribute as Attribute;
    let device = driver::result::device::get(ordinal).map_err(|error| failed("cuDeviceGet", error))?;
    let name = driver::result::device::get_name(device).map_err(|error| failed("cuDeviceGetName", error))?;
    Ok(DeviceInfo {
        ordinal: ordinal.unsigned_abs() as usize,
        name,
        compute_capability: (
            attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        // SAFETY: the device was just given by the driver.
        memory_bytes: unsafe { driver::result::device::total_mem(device) }
            .map_err(|error| failed("cuDeviceTotalMem", error))?,
    })
}

/// One property of a device.
pub(super) fn attribute(device: i32, attribute: driver::sys::CUdevice_attribute) -> Result<i32> {
    // SAFETY: the device was given by the driver.
    unsafe { driver::result::device::get_attribute(device, attribute) }
        .map_err(|error| failed(format!("cuDeviceGetAttribute {attribute:?}"), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_comes_with_its_remedy_and_a_found_one_without() {
        for library in status().libraries {
            assert_eq!(library.version.is_none(), library.remedy.is_some(), "{}", library.name);
        }
    }

    #[test]
    fn without_a_driver_there_is_no_device_and_the_error_says_what_to_install() {
        if has_driver() {
            eprintln!("not run: this machine has libcuda");
            return;
        }
        assert!(status().devices.is_empty() && status().problem.is_none());
        assert!(start_driver().unwrap_err().to_string().contains("install the NVIDIA driver"));
    }
}
