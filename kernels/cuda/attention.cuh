// Attention by tiles with online softmax, forward and backward, bf16 in, f32 sums, on mma.m16n8k16 (sm_80 and later).
//
// Shapes: q_bthd, k_bsgd, v_bsgd, o_bthd and their gradients bf16; lse_bht = ln Σ exp(scale·q·k) and delta_bht = Σ_d do∘o
// f32. Query head i reads key/value head i / (h / g). Query t stands at position query_start + t, key s at s. A query
// sees a key unless it is causal and the key is later, if they are less than `window` apart (0: any distance) or either
// is among the first `num_global` positions. A query that sees nothing gives zeros and lse = -inf.
//
// Head sizes D of 32, 64, 96, 128: attention_D.cu has the kernels of one, so that a model compiles only its own. Bases
// aligned to 16 bytes; t·h·d and s·g·d below 2^31. Nothing accumulates into its output.
//   attention_forward_D           grid (⌈t/128⌉, h, b), 128 threads, shared 4·D·(64 + KEYS) bytes: o, lse
//   attention_delta               attention_delta.cu: delta from do and o, before the two below
//   attention_backward_queries_D  grid (⌈t/128⌉, h, b), 256 threads, shared 512·D + S·(8·D + 16) bytes: dq
//   attention_backward_keys_D     grid (⌈s/128⌉, g, b), 256 threads, shared the same with its own S: dk, dv
// with the tiles KEYS and S that attention_D.cu chooses by the registers they need.
// The backward computes scores twice, once from the queries' side and once from the keys': 7 products in place of 5, and
// in return each gradient has one owner and one order of summation, no atomics, no buffer in f32.
// Intensity: forward a tile of keys (4·D bytes a key) serves 128 queries: 4·128·D FLOPs, 128 a byte from L2.
#pragma once

#include "mma.cuh"

namespace {

// Queries of a forward tile; rows a backward block owns.
constexpr int ROWS = 128;
constexpr float LOG2_E = 1.44269504f;
constexpr float LN_2 = 0.69314718f;

struct Sizes {
    int num_queries, num_keys, num_heads, num_kv_heads, query_start;
    float scale;
    int causal, window, num_global;
};

// Which keys which queries see, by absolute position. Boxes are given by their first and last query and key.
struct Visible {
    bool causal;
    int window, num_global;

    __device__ __forceinline__ Visible(const Sizes &sizes)
        : causal(sizes.causal), window(sizes.window > 0 ? sizes.window : 0x7fffffff), num_global(sizes.num_global) {}

    // Without short cuts: a few comparisons cost less than branches.
    __device__ __forceinline__ bool sees(int query, int key) const {
        bool later = causal & (key > query), near = abs(query - key) < window;
        return (!later) & (near | (key < num_global) | (query < num_global));
    }

    // Every query of the box sees every key of it.
    __device__ __forceinline__ bool all(int q0, int q1, int k0, int k1) const {
        bool near = max(q1 - k0, k1 - q0) < window;
        return !(causal && k1 > q0) && (near || k1 < num_global || q1 < num_global);
    }

    // No query of the box sees a key of it.
    __device__ __forceinline__ bool none(int q0, int q1, int k0, int k1) const {
        bool far = max(q0 - k1, k0 - q1) >= window;
        return (causal && k0 > q1) || (far && k0 >= num_global && q0 >= num_global);
    }
};

// Rows first..first + COUNT of a head to shared memory, zeros from row `end`.
template <int COUNT, int D, int THREADS>
__device__ __forceinline__ void copy_rows(SharedAddress to, const bf16 *head, int stride, int first, int end) {
    constexpr int CHUNKS = D / 8;
    static_assert(COUNT * CHUNKS % THREADS == 0, "every thread copies equally much");
#pragma unroll
    for (int i = 0; i < COUNT * CHUNKS / THREADS; i++) {
        int place = threadIdx.x + i * THREADS;
        int row = place / CHUNKS, chunk = place % CHUNKS;
        bool valid = first + row < end;
        copy_async(to + swizzled<CHUNKS>(row, chunk), head + (valid ? (first + row) * stride + chunk * 8 : 0), valid);
    }
}

// sums[n] += a·bᵀ: 16 rows of a from `row` against N rows of b, D deep.
template <int N, int D>
__device__ __forceinline__ void scores(float (&sums)[N / 8][4], SharedAddress a, int row, SharedAddress b) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        Fragment4 left = ldmatrix(a + swizzled<D / 8>(row + lane % 16, step * 2 + lane / 16));
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            Fragment4 right =
                ldmatrix(b + swizzled<D / 8>(n * 16 + lane % 8 + lane / 16 * 8, step * 2 + lane / 8 % 2));
            mma_bf16(sums[2 * n], left, right.word[0], right.word[1]);
            mma_bf16(sums[2 * n + 1], left, right.word[2], right.word[3]);
        }
    }
}

// The sums of two neighbouring pieces of 16x8 as a left operand of 16x16: they lie in the same lanes.
__device__ __forceinline__ Fragment4 as_left(const float (&low)[4], const float (&high)[4]) {
    return Fragment4{{pack_bf16(low[0], low[1]), pack_bf16(low[2], low[3]), pack_bf16(high[0], high[1]),
                      pack_bf16(high[2], high[3])}};
}

// The right operand of the 16 rows from `row` of a tile and its 16 columns from `column`.
template <int D> __device__ __forceinline__ Fragment4 rows_as_right(SharedAddress tile, int lane, int row, int column) {
    return ldmatrix_transposed(tile + swizzled<D / 8>(row + lane % 16, column / 8 + lane / 16));
}

// sums += p·b: 16xN weights held as sums, N rows of b.
template <int N, int D>
__device__ __forceinline__ void weigh(float (&sums)[D / 8][4], const float (&p)[N / 8][4], SharedAddress b) {
#pragma unroll
    for (int step = 0; step < N / 16; step++) {
        Fragment4 left = as_left(p[2 * step], p[2 * step + 1]);
#pragma unroll
        for (int d = 0; d < D / 16; d++) {
            Fragment4 right = rows_as_right<D>(b, threadIdx.x % 32, step * 16, d * 16);
            mma_bf16(sums[2 * d], left, right.word[0], right.word[1]);
            mma_bf16(sums[2 * d + 1], left, right.word[2], right.word[3]);
        }
    }
}

template <int N> __device__ __forceinline__ void clear(float (&sums)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) sums[n][i] = 0.0f;
    }
}

// Stores rows first + lane / 4 and eight further, each times its factor, below `end`.
template <int D>
__device__ __forceinline__ void store_rows(bf16 *head, int stride, const float (&sums)[D / 8][4], int first, int end,
                                           float factor, float factor_8) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = first + lane / 4 + half * 8;
        float by = half ? factor_8 : factor;
#pragma unroll
        for (int d = 0; d < D / 32; d++) {
            u32 words[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float *pair = sums[d * 4 + i] + half * 2;
                words[i] = pack_bf16(pair[0] * by, pair[1] * by);
            }
            transpose_quad(words);
            if (row < end) {
                store_16_bytes(head + row * stride + d * 32 + lane % 4 * 8,
                               make_uint4(words[0], words[1], words[2], words[3]));
            }
        }
    }
}

} // namespace
