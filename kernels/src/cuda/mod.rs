//! NVIDIA GPUs: how the kernels in `cuda/*.cu` are launched.

mod geometry;

pub use geometry::Launch;
