//! The CPU bodies of the operations: multi-threaded, vectorised, and the same bits for any number of threads.
//!
//! The rule that gives equal bits: work is cut into blocks whose size never depends on the thread count, and
//! every sum is taken inside one block in a fixed order, then over blocks in index order.

pub(crate) mod adamw;
pub(crate) mod attention;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod bias;
pub(crate) mod cross_entropy;
pub(crate) mod elementwise;
pub(crate) mod embedding;
pub(crate) mod float;
pub(crate) mod gemm;
pub(crate) mod grouped_matmul;
pub(crate) mod math;
pub(crate) mod matmul;
pub(crate) mod parallel;
pub(crate) mod permute;
pub(crate) mod reduce;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod router;
pub(crate) mod routing;
pub(crate) mod routing_load;
pub(crate) mod routing_plan;
pub(crate) mod simd;
pub(crate) mod softmax;
pub(crate) mod swiglu;
#[cfg(target_arch = "x86_64")]
mod swiglu_avx512;
