//! NVIDIA GPUs: how the kernels in `cuda/*.cu` are launched.

pub mod geometry;

pub use geometry::Launch;
