// What the kernels share: element types, 16-byte accesses, reductions in a fixed order, and the instructions that only
// the device has, each with a body for the host (WATTLE_HOST: the emulation in host/, for tests without a GPU).
//
// No CUDA header is needed, so that any NVRTC compiles these files by itself. Blocks are whole warps.
#pragma once

#ifdef WATTLE_HOST
#include "host/cuda.h"
#endif

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;

constexpr int WARP_LANES = 32;
constexpr u32 FULL_MASK = 0xffffffffu;

// The largest block any of these kernels is launched with, and the warps it has.
constexpr int MAX_THREADS = 1024;
constexpr int MAX_WARPS = MAX_THREADS / WARP_LANES;

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

// bfloat16: the upper half of a float.
struct bf16 {
    u16 bits;
};

// Two in one register, the first in the low half.
__device__ __forceinline__ float low_to_float(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_to_float(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

// To the nearest bfloat16, ties to even; NaN stays NaN.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
#ifdef WATTLE_HOST
    float values[2] = {low, high};
    u32 pair = 0;
    for (int i = 0; i < 2; i++) {
        u32 bits = __float_as_uint(values[i]);
        bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
        u32 rounded = is_nan ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
        pair |= rounded << (16 * i);
    }
    return pair;
#else
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#endif
}

template <class T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x) { return bf16{u16(pack_bf16(x, 0.0f))}; }

// x after a round trip through T: what a kernel that stores an intermediate would go on with.
template <class T> __device__ __forceinline__ float rounded_to(float x) { return to_float(from_float<T>(x)); }

// Elements of T in 16 bytes, the widest access of a thread.
template <class T> constexpr int LANES_OF = 16 / int(sizeof(T));

// Whether all accesses of 16 bytes to rows of `row_elements` from `base` are aligned.
template <class T> __device__ __forceinline__ bool is_wide(const T *base, i64 row_elements) {
    return (u64)base % 16 == 0 && row_elements % LANES_OF<T> == 0;
}

// 16 bytes of T, packed as they lie in memory: a chunk.
__device__ __forceinline__ uint4 load_16_bytes(const void *address) {
#ifdef WATTLE_HOST
    if ((u64)address % 16) host::fail("16 bytes are read at an address that is no multiple of 16");
#endif
    return *(const uint4 *)address;
}

__device__ __forceinline__ void store_16_bytes(void *address, uint4 chunk) {
#ifdef WATTLE_HOST
    if ((u64)address % 16) host::fail("16 bytes are written at an address that is no multiple of 16");
#endif
    *(uint4 *)address = chunk;
}

__device__ __forceinline__ void unpack(uint4 chunk, float (&x)[4]) {
    x[0] = __uint_as_float(chunk.x);
    x[1] = __uint_as_float(chunk.y);
    x[2] = __uint_as_float(chunk.z);
    x[3] = __uint_as_float(chunk.w);
}

__device__ __forceinline__ void unpack(uint4 chunk, float (&x)[8]) {
    const u32 pairs[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[2 * i] = low_to_float(pairs[i]);
        x[2 * i + 1] = high_to_float(pairs[i]);
    }
}

__device__ __forceinline__ uint4 pack(const float (&x)[4]) {
    return make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3]));
}

__device__ __forceinline__ uint4 pack(const float (&x)[8]) {
    return make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
}

// The elements from `at` of a row of `n`, zeros behind its end. WIDE: one aligned access, for rows that pass is_wide.
template <class T, bool WIDE> __device__ __forceinline__ uint4 load_chunk(const T *row, int at, int n) {
    if constexpr (WIDE) {
        return load_16_bytes(row + at);
    } else {
        float x[LANES_OF<T>];
#pragma unroll
        for (int i = 0; i < LANES_OF<T>; i++) x[i] = at + i < n ? to_float(row[at + i]) : 0.0f;
        return pack(x);
    }
}

// The chunks at `first`, `first + step` and so on of a row of `n`, zeros behind its end: loads that are all under way
// before the first is used, which the compiler does not arrange by itself across the turns of a loop.
template <class T, bool WIDE, int BATCH>
__device__ __forceinline__ void load_batch(const T *row, int first, int step, int n, uint4 (&chunks)[BATCH]) {
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
        chunks[i] = make_uint4(0, 0, 0, 0);
        if (first + i * step < n) chunks[i] = load_chunk<T, WIDE>(row, first + i * step, n);
    }
}

// LANES elements from `at` of a row of `n` as floats, zeros behind its end: for operands whose type is not that of the
// chunk they stand beside. LANES is a multiple of what 16 bytes hold.
template <class T, int LANES, bool WIDE>
__device__ __forceinline__ void load_values(const T *row, int at, int n, float (&x)[LANES]) {
    constexpr int STEP = LANES_OF<T>;
#pragma unroll
    for (int i = 0; i < LANES; i += STEP) {
        float part[STEP];
        unpack(load_chunk<T, WIDE>(row, at + i, n), part);
#pragma unroll
        for (int j = 0; j < STEP; j++) x[i + j] = part[j];
    }
}

// The other way round.
template <class T, int LANES, bool WIDE>
__device__ __forceinline__ void store_values(T *row, int at, int n, const float (&x)[LANES]) {
    constexpr int STEP = LANES_OF<T>;
#pragma unroll
    for (int i = 0; i < LANES; i += STEP) {
        float part[STEP];
#pragma unroll
        for (int j = 0; j < STEP; j++) part[j] = x[i + j];
        if (WIDE) {
            store_16_bytes(row + at + i, pack(part));
        } else {
#pragma unroll
            for (int j = 0; j < STEP; j++) {
                if (at + i + j < n) row[at + i + j] = from_float<T>(part[j]);
            }
        }
    }
}

// The dynamic shared memory of the launch, aligned for every use.
__device__ __forceinline__ unsigned char *dynamic_shared() {
#ifdef WATTLE_HOST
    return host::shared_memory;
#else
    extern __shared__ __align__(1024) unsigned char wattle_dynamic_shared[];
    return wattle_dynamic_shared;
#endif
}

// Reductions over the `width` neighbouring lanes that the calling lane belongs to, a power of two up to a warp; every
// lane gets the result. All lanes of the warp take part. The order is a fixed tree: the same bits on every device.

__device__ __forceinline__ float lanes_sum(float x, int width = WARP_LANES) {
    for (int flip = width / 2; flip > 0; flip /= 2) x += __shfl_xor_sync(FULL_MASK, x, flip);
    return x;
}

__device__ __forceinline__ double lanes_sum(double x, int width = WARP_LANES) {
    for (int flip = width / 2; flip > 0; flip /= 2) x += __shfl_xor_sync(FULL_MASK, x, flip);
    return x;
}

__device__ __forceinline__ float lanes_max(float x, int width = WARP_LANES) {
    for (int flip = width / 2; flip > 0; flip /= 2) x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, flip));
    return x;
}

// Reductions over the block: every thread gets the result. `scratch` holds one value a warp; it may be used again at
// once, as a barrier stands on both sides.

template <class F> __device__ __forceinline__ F block_sum(F x, F *scratch) {
    const int warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES, warps = blockDim.x / WARP_LANES;
    x = lanes_sum(x);
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = lanes_sum(lane < warps ? scratch[lane] : F(0));
    __syncthreads();
    return x;
}

__device__ __forceinline__ float block_max(float x, float *scratch) {
    const int warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES, warps = blockDim.x / WARP_LANES;
    x = lanes_max(x);
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = lanes_max(lane < warps ? scratch[lane] : -infinity());
    __syncthreads();
    return x;
}

// How kernels that work on rows share them out: `width` threads work on one row, neighbouring lanes (a power of two, up
// to a warp) or the whole block. Threads beyond the last row go along, as reductions need them.
struct RowShare {
    i64 row;
    // This thread among those of its row.
    int lane;
};

__device__ __forceinline__ int rows_per_block(int width) { return blockDim.x / width; }

__device__ __forceinline__ RowShare row_share(int width) {
    return RowShare{(i64)blockIdx.x * rows_per_block(width) + threadIdx.x / width, int(threadIdx.x) % width};
}

// Sum over the threads of a row.
__device__ __forceinline__ float row_sum(float x, int width, float *scratch) {
    return width <= WARP_LANES ? lanes_sum(x, width) : block_sum(x, scratch);
}

// 1 / (1 + e^-x), to a few units in the last place.
__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }
