//! NVIDIA GPUs: how the kernels in `cuda/*.cu` are launched, and what they share with the host.

pub mod adamw;
pub mod attention;
pub mod geometry;
pub mod grouped_gemm;

pub use geometry::Launch;
