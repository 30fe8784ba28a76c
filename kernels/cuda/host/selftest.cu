// Kernels for the test of the emulation itself: right ones, and each kind of mistake that it must report.
#include "../common.cuh"

// out[t] = sum over the block of in, and of each warp by shuffles.
extern "C" __global__ void sums(const float *in, float *block_sums, float *warp_sums) {
    __shared__ float scratch[MAX_WARPS];
    float x = in[blockIdx.x * blockDim.x + threadIdx.x];
    warp_sums[blockIdx.x * blockDim.x + threadIdx.x] = lanes_sum(x);
    block_sums[blockIdx.x * blockDim.x + threadIdx.x] = block_sum(x, scratch);
}

extern "C" __global__ void some_lanes_meet(int *out) {
    const int lane = threadIdx.x;
    const u32 mask = lane < 8 ? 0x000000ffu : 0xffffff00u;
    if (lane < 8) {
        for (int i = 0; i < 3; i++) out[lane] = __reduce_add_sync(mask, lane);
    } else {
        out[lane] = __shfl_sync(mask, lane, 8);
    }
}

extern "C" __global__ void barrier_in_a_branch() {
    if (threadIdx.x < 32) __syncthreads();
}

extern "C" __global__ void two_barriers_for_one() {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}

extern "C" __global__ void shuffle_in_a_branch(int *out) {
    if (threadIdx.x % 2) out[threadIdx.x] = __shfl_xor_sync(FULL_MASK, 1, 1);
}

extern "C" __global__ void two_shuffles_for_one(int *out) {
    if (threadIdx.x % 2) {
        out[threadIdx.x] = __shfl_xor_sync(FULL_MASK, 1, 1);
    } else {
        out[threadIdx.x] = __ballot_sync(FULL_MASK, 1);
    }
}

extern "C" __global__ void shared_overrun() {
    dynamic_shared()[blockDim.x + threadIdx.x] = 1;
}

extern "C" __global__ void unwritten_shared(float *out) {
    __shared__ float values[64];
    if (threadIdx.x == 0) values[0] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = values[threadIdx.x];
}

extern "C" __global__ void outside_an_array(int *out) {
    __shared__ int values[8];
    values[threadIdx.x] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = values[0];
}

extern "C" __global__ void misaligned_vector(float *out) {
    const float4 zeros = {};
    *(float4 *)(out + 2) = zeros;
}

extern "C" __global__ void misaligned(float *out) {
    store_16_bytes(out + 1, make_uint4(0, 0, 0, 0));
}

extern "C" __global__ void wait_for_nobody(const int *flag) {
    host::wait_until("wait_for_nobody", [](const void *flag) { return *(const int *)flag != 0; }, flag);
}
