//! NVIDIA GPUs: how the kernels in `cuda/*.cu` are launched.

pub mod attention;
pub mod geometry;
pub mod grouped_gemm;

pub use geometry::Launch;
