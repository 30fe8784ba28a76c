//! The oracle: every operation in plain f64 loops, as its equation reads. Slow and obvious on purpose.

pub mod adamw;
pub mod attention;
pub mod bias;
pub mod cross_entropy;
pub mod elementwise;
pub mod embedding;
pub mod grouped_matmul;
pub mod matmul;
pub mod permute;
pub mod reduce;
pub mod rms_norm;
pub mod rope;
pub mod routing;
pub mod swiglu;
