//! How the kernels of `grouped_gemm.cu` and, on sm_90a, `grouped_gemm_hopper.cu` are launched.

use super::Launch;

/// What every inner and outer dimension of a product must be a multiple of: 16 bytes of bf16.
pub const ALIGNMENT: usize = 8;

/// The launch of every kernel of `grouped_gemm.cu`: as many blocks as run at once. They find their work from the offsets
/// on the device, so neither the shape nor the routing shows here, and the number of blocks changes no bit of the result.
pub fn launch(num_multiprocessors: u32) -> Launch {
    const BLOCKS_EACH: u32 = 2;
    const THREADS: u32 = 128;
    const STAGES: u32 = 4;
    const STAGE_BYTES: u32 = 2 * 128 * 32 * 2;
    Launch { shared_bytes: STAGES * STAGE_BYTES, ..Launch::row(BLOCKS_EACH * num_multiprocessors, THREADS) }
}

/// The launch of every kernel of `grouped_gemm_hopper.cu`.
pub fn launch_hopper(num_multiprocessors: u32) -> Launch {
    const THREADS: u32 = 384;
    const STAGES: u32 = 4;
    const STAGE_BYTES: u32 = (128 + 256) * 64 * 2;
    const BARRIER_BYTES: u32 = 2 * 8;
    let shared_bytes = STAGES * (STAGE_BYTES + BARRIER_BYTES);
    Launch { shared_bytes, ..Launch::row(num_multiprocessors, THREADS) }
}
