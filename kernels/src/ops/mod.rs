//! The operations: one file each, shapes and dtypes checked here, bodies per device elsewhere.

pub mod adamw;
pub mod attention;
pub mod bias;
pub(crate) mod check;
pub mod cross_entropy;
pub mod elementwise;
pub mod embedding;
pub mod grouped_matmul;
pub mod matmul;
pub mod permute;
pub mod reduce;
pub mod rms_norm;
pub mod rope;
pub mod router;
pub mod routing_load;
pub mod routing_plan;
pub mod swiglu;
