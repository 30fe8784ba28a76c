// Sums, scaling and casts, element by element: arithmetic in f32, the result stored in its own type.
//
// Shapes: any, [n] elements. out may be an operand.
// Launch: geometry::elementwise; a thread handles CHUNKS chunks of 8 elements, all loads under way at once.
// Bytes: add 3 values an element, scale and cast 2.
#include "common.cuh"

constexpr int THREADS = 256;
constexpr int CHUNKS = 2;
// Elements a thread handles together, for every type: 16 bytes of bf16.
constexpr int LANES = 8;
constexpr int PER_BLOCK = THREADS * CHUNKS * LANES;

// out = term(a, b) over the elements of this block; b is null for an operation on one operand.
template <class A, class Out, bool WIDE, class Term>
__device__ __forceinline__ void apply_block(const A *a, const A *b, Out *out, int n, Term term) {
    float as[CHUNKS][LANES], bs[CHUNKS][LANES] = {};
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int at = (threadIdx.x + c * THREADS) * LANES;
        load_values<A, LANES, WIDE>(a, at, n, as[c]);
        if (b) load_values<A, LANES, WIDE>(b, at, n, bs[c]);
    }
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
#pragma unroll
        for (int i = 0; i < LANES; i++) as[c][i] = term(as[c][i], bs[c][i]);
        store_values<Out, LANES, WIDE>(out, (threadIdx.x + c * THREADS) * LANES, n, as[c]);
    }
}

template <class A, class Out, class Term>
__device__ __forceinline__ void apply(const A *a, const A *b, Out *out, i64 n, Term term) {
    const i64 first = (i64)blockIdx.x * PER_BLOCK;
    const int left = int(min(n - first, (i64)PER_BLOCK));
    const A *block_b = b ? b + first : nullptr;
    if (left == PER_BLOCK && is_wide(a, 0) && is_wide(b, 0) && is_wide(out, 0)) {
        apply_block<A, Out, true>(a + first, block_b, out + first, left, term);
    } else {
        apply_block<A, Out, false>(a + first, block_b, out + first, left, term);
    }
}

struct Add {
    __device__ float operator()(float a, float b) const { return a + b; }
};
struct Scale {
    float factor;
    __device__ float operator()(float a, float) const { return a * factor; }
};
struct Same {
    __device__ float operator()(float a, float) const { return a; }
};

extern "C" __global__ void __launch_bounds__(THREADS) add_f32(const float *a, const float *b, float *out, i64 n) {
    apply(a, b, out, n, Add());
}

extern "C" __global__ void __launch_bounds__(THREADS) add_bf16(const bf16 *a, const bf16 *b, bf16 *out, i64 n) {
    apply(a, b, out, n, Add());
}

extern "C" __global__ void __launch_bounds__(THREADS) scale_f32(const float *a, float *out, i64 n, float factor) {
    apply<float>(a, nullptr, out, n, Scale{factor});
}

extern "C" __global__ void __launch_bounds__(THREADS) scale_bf16(const bf16 *a, bf16 *out, i64 n, float factor) {
    apply<bf16>(a, nullptr, out, n, Scale{factor});
}

// To the nearest value, ties to even; NaN stays NaN.
extern "C" __global__ void __launch_bounds__(THREADS) cast_f32_bf16(const float *a, bf16 *out, i64 n) {
    apply<float>(a, nullptr, out, n, Same());
}

extern "C" __global__ void __launch_bounds__(THREADS) cast_bf16_f32(const bf16 *a, float *out, i64 n) {
    apply<bf16>(a, nullptr, out, n, Same());
}
