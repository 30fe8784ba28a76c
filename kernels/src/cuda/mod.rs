//! NVIDIA GPUs: how the kernels in `cuda/*.cu` are compiled and launched, and what they share with the host.
//!
//! No CUDA is needed to build or to start: every library is opened when it is first used, and [`status`] says what is
//! there.

mod call;
pub mod calls;
pub(crate) mod device;
pub mod geometry;
pub mod grouped_gemm;
mod library;
pub mod memory;
pub mod module;
pub(crate) mod ops;
pub mod sources;

pub use call::{Argument, Call, Floats};
pub use geometry::Launch;
pub use library::{DeviceInfo, Library, Status, status};
