// The CUDA built-ins that the kernels use, on the host: each is the function or variable of the same name in the CUDA
// C++ programming guide. There are no float atomics here, because no kernel may use one: their order is not fixed.
#pragma once

#include "block.h"

#include <cmath>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __grid_constant__
#define __constant__
#define __align__(bytes) alignas(bytes)
#define __shared__ static __attribute__((section("wattle_shared")))

#define threadIdx (host::thread_index)
#define blockIdx (host::block_index)
#define blockDim (host::block_dim)
#define gridDim (host::grid_dim)
static constexpr int warpSize = 32;

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) ulonglong2 { unsigned long long x, y; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline int2 make_int2(int x, int y) { return {x, y}; }
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// Barriers.

static inline void __syncthreads(int line = __builtin_LINE()) {
    host::barrier(0, unsigned(host::fibers.size()), false, "__syncthreads", line);
}
static inline int __syncthreads_count(int vote, int line = __builtin_LINE()) {
    return int(host::barrier(0, unsigned(host::fibers.size()), vote != 0, "__syncthreads_count", line));
}
static inline int __syncthreads_or(int vote, int line = __builtin_LINE()) {
    return host::barrier(0, unsigned(host::fibers.size()), vote != 0, "__syncthreads_or", line) != 0;
}
static inline int __syncthreads_and(int vote, int line = __builtin_LINE()) {
    unsigned all = unsigned(host::fibers.size());
    return host::barrier(0, all, vote != 0, "__syncthreads_and", line) == all;
}
static inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
    int nothing = 0;
    host::warp_operation<int>("__syncwarp", mask, nothing, [](int **, unsigned) {}, line);
}
static inline void __threadfence() {}
static inline void __threadfence_block() {}
[[noreturn]] static inline void __trap() { host::fail("__trap"); }

// Warp operations. Reading a lane outside the mask is an error here; the device leaves it undefined.

namespace host {

template <class T>
struct Shuffle {
    T value;
    unsigned source;
    T result;
};

template <class T>
static T shuffle(const char *at, unsigned mask, T value, unsigned source, int line) {
    Shuffle<T> mine{value, source, value};
    warp_operation<Shuffle<T>>(
        at, mask, mine,
        [](Shuffle<T> **lanes, unsigned mask) {
            for (unsigned i = 0; i < WARP; i++) {
                if (!(mask >> i & 1)) continue;
                unsigned source = lanes[i]->source;
                if (!(mask >> source & 1)) fail("a shuffle reads lane %u, which mask %08x leaves out", source, mask);
                lanes[i]->result = lanes[source]->value;
            }
        },
        line);
    return mine.result;
}

static inline unsigned lane() { return current->number % WARP; }
static inline unsigned segment(unsigned width) { return lane() / width * width; }

template <class T>
struct Reduction {
    T value, result;
};

template <class T, class Combine>
static T reduce(const char *at, unsigned mask, T value, Combine, int line) {
    Reduction<T> mine{value, value};
    warp_operation<Reduction<T>>(
        at, mask, mine,
        [](Reduction<T> **lanes, unsigned mask) {
            bool first = true;
            T total{};
            for (unsigned i = 0; i < WARP; i++) {
                if (!(mask >> i & 1)) continue;
                total = first ? lanes[i]->value : Combine{}(total, lanes[i]->value);
                first = false;
            }
            for (unsigned i = 0; i < WARP; i++) {
                if (mask >> i & 1) lanes[i]->result = total;
            }
        },
        line);
    return mine.result;
}

struct Sum {
    template <class T> T operator()(T a, T b) const { return a + b; }
};
struct Larger {
    template <class T> T operator()(T a, T b) const { return a > b ? a : b; }
};
struct Smaller {
    template <class T> T operator()(T a, T b) const { return a < b ? a : b; }
};
struct Or {
    template <class T> T operator()(T a, T b) const { return a | b; }
};

} // namespace host

template <class T>
static inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, int line = __builtin_LINE()) {
    return host::shuffle("__shfl_sync", mask, value, host::segment(width) + unsigned(source) % width, line);
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32, int line = __builtin_LINE()) {
    unsigned source = host::lane() ^ unsigned(flip);
    bool outside = source >= host::segment(width) + unsigned(width);
    return host::shuffle("__shfl_xor_sync", mask, value, outside ? host::lane() : source, line);
}
template <class T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE()) {
    bool outside = host::lane() < host::segment(width) + delta;
    return host::shuffle("__shfl_up_sync", mask, value, outside ? host::lane() : host::lane() - delta, line);
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE()) {
    bool outside = host::lane() + delta >= host::segment(width) + unsigned(width);
    return host::shuffle("__shfl_down_sync", mask, value, outside ? host::lane() : host::lane() + delta, line);
}
static inline unsigned __ballot_sync(unsigned mask, int vote, int line = __builtin_LINE()) {
    return host::reduce("__ballot_sync", mask, vote ? 1u << host::lane() : 0u, host::Or{}, line);
}
static inline int __any_sync(unsigned mask, int vote, int line = __builtin_LINE()) {
    return host::reduce("__any_sync", mask, vote != 0 ? 1u : 0u, host::Or{}, line) != 0;
}
static inline int __all_sync(unsigned mask, int vote, int line = __builtin_LINE()) {
    return host::reduce("__all_sync", mask, vote != 0 ? 1u : 0u, host::Smaller{}, line) != 0;
}
template <class T>
static inline T __reduce_add_sync(unsigned mask, T value, int line = __builtin_LINE()) {
    return host::reduce("__reduce_add_sync", mask, value, host::Sum{}, line);
}
template <class T>
static inline T __reduce_max_sync(unsigned mask, T value, int line = __builtin_LINE()) {
    return host::reduce("__reduce_max_sync", mask, value, host::Larger{}, line);
}
template <class T>
static inline T __reduce_min_sync(unsigned mask, T value, int line = __builtin_LINE()) {
    return host::reduce("__reduce_min_sync", mask, value, host::Smaller{}, line);
}
// The lanes of the mask that hold the same value.
template <class T>
static inline unsigned __match_any_sync(unsigned mask, T value, int line = __builtin_LINE()) {
    struct Match {
        T value;
        unsigned same;
    } mine{value, 0};
    host::warp_operation<Match>(
        "__match_any_sync", mask, mine,
        [](Match **lanes, unsigned mask) {
            for (unsigned i = 0; i < 32; i++) {
                for (unsigned j = 0; j < 32; j++) {
                    if (!(mask >> i & 1) || !(mask >> j & 1)) continue;
                    lanes[i]->same |= unsigned(lanes[i]->value == lanes[j]->value) << j;
                }
            }
        },
        line);
    return mine.same;
}

// Integer atomics. Fibers switch only where they wait, so plain code is atomic.

template <class T>
static inline T atomicAdd(T *address, std::common_type_t<T> value) {
    static_assert(std::is_integral<T>::value, "float atomics have no fixed order");
    T before = *address;
    *address = before + value;
    return before;
}
template <class T>
static inline T atomicMax(T *address, std::common_type_t<T> value) {
    static_assert(std::is_integral<T>::value, "float atomics have no fixed order");
    T before = *address;
    *address = before > value ? before : value;
    return before;
}
template <class T>
static inline T atomicOr(T *address, std::common_type_t<T> value) {
    T before = *address;
    *address = before | value;
    return before;
}
template <class T>
static inline T atomicExch(T *address, std::common_type_t<T> value) {
    T before = *address;
    *address = value;
    return before;
}
template <class T>
static inline T atomicCAS(T *address, std::common_type_t<T> expected, std::common_type_t<T> value) {
    T before = *address;
    if (before == expected) *address = value;
    return before;
}

// Bits and numbers.

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
static inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static inline int __float_as_int(float x) { return int(__float_as_uint(x)); }
static inline float __int_as_float(int bits) { return __uint_as_float(unsigned(bits)); }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
// The C library declares these two names for itself.
#define __expf(x) expf(x)
#define __logf(x) logf(x)
static inline float __fdividef(float x, float y) { return x / y; }
template <class T> static inline T min(T a, T b) { return b < a ? b : a; }
template <class T> static inline T max(T a, T b) { return a < b ? b : a; }
