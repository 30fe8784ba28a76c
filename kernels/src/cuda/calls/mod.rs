//! The kernel calls of each operation, from its buffers and sizes: grid, shared memory and argument list in one place.
//!
//! Nothing here touches a device. `cuda::ops` launches these calls, and `tests/cuda_host` runs the very same on the host.

pub mod adamw;
pub mod attention;
pub mod cross_entropy;
pub mod elementwise;
pub mod embedding;
pub mod permute;
pub mod reduce;
pub mod rms_norm;
pub mod rope;
pub mod router;
pub mod routing_load;
pub mod routing_plan;
pub mod swiglu;
