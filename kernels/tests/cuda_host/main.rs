//! The CUDA kernels on the host, against the f64 reference: every kernel, ragged and empty shapes included, with blocks
//! and threads in both orders. What only a GPU can show (speed, the instructions behind the wrappers) is not tested here.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking"
)]

mod adamw;
mod attention;
mod cross_entropy;
mod elementwise;
mod embedding;
mod emulation;
mod grouped_gemm;
mod harness;
mod permute;
mod reduce;
mod rms_norm;
mod rope;
mod router;
mod routing_load;
mod routing_plan;
mod swiglu;
