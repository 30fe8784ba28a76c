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
constexpr int FORWARD_THREADS = 128;
constexpr int BACKWARD_THREADS = 256;
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

// A warp holds 32 queries, in two pieces of 16 rows: each fragment of keys and values is used twice.
template <int D, int KEYS>
__device__ __forceinline__ void forward(bf16 *o, float *lse, const bf16 *q, const bf16 *k, const bf16 *v,
                                        const Sizes &sizes) {
    constexpr int PIECES = 2;
    const Visible visible(sizes);
    const int head = blockIdx.y, batch = blockIdx.z, warp = threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    const int kv_head = head / (sizes.num_heads / sizes.num_kv_heads);
    // With a causal mask the last tiles have most to do: they start first.
    const int first = (gridDim.x - 1 - blockIdx.x) * ROWS;
    const int last = min(first + ROWS, sizes.num_queries) - 1;
    const int q0 = sizes.query_start + first, q1 = sizes.query_start + last;
    const int q_stride = sizes.num_heads * D, k_stride = sizes.num_kv_heads * D;
    const i64 q_head = i64(batch) * sizes.num_queries * q_stride + head * D;
    const i64 k_head = i64(batch) * sizes.num_keys * k_stride + kv_head * D;

    const SharedAddress shared_q = shared_address(dynamic_shared());
    const SharedAddress shared_k = shared_q + ROWS * D * 2, shared_v = shared_k + KEYS * D * 2;

    auto next_visible = [&](int key) {
        while (key < sizes.num_keys && visible.none(q0, q1, key, min(key + KEYS, sizes.num_keys) - 1)) key += KEYS;
        return key;
    };

    float sums[PIECES][D / 8][4];
    float max_of[PIECES][2], sum_of[PIECES][2];
#pragma unroll
    for (int m = 0; m < PIECES; m++) {
        clear(sums[m]);
        max_of[m][0] = max_of[m][1] = -infinity();
        sum_of[m][0] = sum_of[m][1] = 0.0f;
    }

    int key = next_visible(0);
    copy_rows<ROWS, D, FORWARD_THREADS>(shared_q, q + q_head, q_stride, first, sizes.num_queries);
    if (key < sizes.num_keys) copy_rows<KEYS, D, FORWARD_THREADS>(shared_k, k + k_head, k_stride, key, sizes.num_keys);
    commit_copies();
    while (key < sizes.num_keys) {
        // With D = 128 the sums leave no room for addresses computed in front of the loop.
        lane = opaque(lane);
        wait_copies<0>();
        // The keys are here, and everybody is done with the values before.
        __syncthreads();
        copy_rows<KEYS, D, FORWARD_THREADS>(shared_v, v + k_head, k_stride, key, sizes.num_keys);
        commit_copies();

        float p[PIECES][KEYS / 8][4];
#pragma unroll
        for (int m = 0; m < PIECES; m++) clear(p[m]);
#pragma unroll
        for (int step = 0; step < D / 16; step++) {
            Fragment4 left[PIECES];
#pragma unroll
            for (int m = 0; m < PIECES; m++) {
                left[m] = ldmatrix(shared_q + swizzled<D / 8>(warp * 32 + m * 16 + lane % 16, step * 2 + lane / 16));
            }
#pragma unroll
            for (int n = 0; n < KEYS / 16; n++) {
                Fragment4 right =
                    ldmatrix(shared_k + swizzled<D / 8>(n * 16 + lane % 8 + lane / 16 * 8, step * 2 + lane / 8 % 2));
#pragma unroll
                for (int m = 0; m < PIECES; m++) {
                    mma_bf16(p[m][2 * n], left[m], right.word[0], right.word[1]);
                    mma_bf16(p[m][2 * n + 1], left[m], right.word[2], right.word[3]);
                }
            }
        }
        wait_copies<0>();
        // The values are here, and everybody is done with the keys.
        __syncthreads();
        int next = next_visible(key + KEYS);
        if (next < sizes.num_keys) {
            copy_rows<KEYS, D, FORWARD_THREADS>(shared_k, k + k_head, k_stride, next, sizes.num_keys);
        }
        commit_copies();

        const float factor = sizes.scale * LOG2_E;
#pragma unroll
        for (int m = 0; m < PIECES; m++) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) p[m][n][i] *= factor;
            }
        }
        bool whole = key + KEYS <= sizes.num_keys && visible.all(q0, q1, key, key + KEYS - 1);
        if (!whole) {
#pragma unroll
            for (int m = 0; m < PIECES; m++) {
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        int query = q0 + warp * 32 + m * 16 + i / 2 * 8 + lane / 4;
                        int at = key + n * 8 + lane % 4 * 2 + i % 2;
                        p[m][n][i] = (at < sizes.num_keys) & visible.sees(query, at) ? p[m][n][i] : -infinity();
                    }
                }
            }
        }
#pragma unroll
        for (int m = 0; m < PIECES; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float highest = -infinity();
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                    for (int i = 0; i < 2; i++) highest = fmaxf(highest, p[m][n][half * 2 + i]);
                }
                highest = fmaxf(max_of[m][half], lanes_max(highest, 4));
                // A row that has seen no key yet subtracts 0 in place of -inf.
                float base = highest == -infinity() ? 0.0f : highest;
                float correction = exp2_fast(max_of[m][half] - base), sum = 0.0f;
                max_of[m][half] = highest;
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        float &x = p[m][n][half * 2 + i];
                        x = exp2_fast(x - base);
                        sum += x;
                    }
                }
                sum_of[m][half] = sum_of[m][half] * correction + sum;
#pragma unroll
                for (int d = 0; d < D / 8; d++) {
                    sums[m][d][half * 2] *= correction;
                    sums[m][d][half * 2 + 1] *= correction;
                }
            }
        }
#pragma unroll
        for (int step = 0; step < KEYS / 16; step++) {
            Fragment4 left[PIECES];
#pragma unroll
            for (int m = 0; m < PIECES; m++) left[m] = as_left(p[m][2 * step], p[m][2 * step + 1]);
#pragma unroll
            for (int d = 0; d < D / 16; d++) {
                Fragment4 right = rows_as_right<D>(shared_v, lane, step * 16, d * 16);
#pragma unroll
                for (int m = 0; m < PIECES; m++) {
                    mma_bf16(sums[m][2 * d], left[m], right.word[0], right.word[1]);
                    mma_bf16(sums[m][2 * d + 1], left[m], right.word[2], right.word[3]);
                }
            }
        }
        key = next;
    }
    wait_copies<0>();

#pragma unroll
    for (int m = 0; m < PIECES; m++) {
        int row = first + warp * 32 + m * 16;
        float factors[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = lanes_sum(sum_of[m][half], 4);
            factors[half] = sum > 0.0f ? 1.0f / sum : 0.0f;
            int at = row + half * 8 + lane / 4;
            if (lane % 4 == 0 && at <= last) {
                lse[(i64(batch) * sizes.num_heads + head) * sizes.num_queries + at] =
                    sum > 0.0f ? (max_of[m][half] + log2f(sum)) * LN_2 : -infinity();
            }
        }
        store_rows<D>(o + q_head, q_stride, sums[m], row, last + 1, factors[0], factors[1]);
    }
}

// One block owns 128 rows, queries or keys, and walks the rows of the other kind in tiles of STREAM, two stages deep:
//   of queries: own q, do; walks k, v:       dq = scale·ds·k
//   of keys:    own k, v; walks q, do of every query head of the group:   dk = scale·dsᵀ·q, dv = pᵀ·do
// with p = exp(scale·q·kᵀ - lse) and ds = p∘(do·vᵀ - delta), of which a warp holds its 16 own rows.
template <int D, int STREAM, bool OF_KEYS>
__device__ __forceinline__ void backward(bf16 *first_gradient, bf16 *second_gradient, const bf16 *d_out,
                                         const bf16 *q, const bf16 *k, const bf16 *v, const float *lse,
                                         const float *delta, const Sizes &sizes) {
    constexpr int TILE_BYTES = STREAM * D * 2, STAGE_BYTES = 2 * TILE_BYTES + 2 * STREAM * 4;
    const Visible visible(sizes);
    const int batch = blockIdx.z, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int group = sizes.num_heads / sizes.num_kv_heads;
    const int kv_head = OF_KEYS ? blockIdx.y : blockIdx.y / group;
    const int num_own = OF_KEYS ? sizes.num_keys : sizes.num_queries;
    const int num_streamed = OF_KEYS ? sizes.num_queries : sizes.num_keys;
    // With a causal mask the first keys and the last queries have most to do: they start first.
    const int first = (OF_KEYS ? blockIdx.x : gridDim.x - 1 - blockIdx.x) * ROWS;
    const int last = min(first + ROWS, num_own) - 1;
    const int q_stride = sizes.num_heads * D, k_stride = sizes.num_kv_heads * D;
    const i64 q_batch = i64(batch) * sizes.num_queries * q_stride;
    const i64 k_head = i64(batch) * sizes.num_keys * k_stride + kv_head * D;
    const i64 lse_batch = i64(batch) * sizes.num_heads * sizes.num_queries;

    const SharedAddress own_1 = shared_address(dynamic_shared()), own_2 = own_1 + ROWS * D * 2;
    const SharedAddress stages = own_2 + ROWS * D * 2;
    const unsigned char *stage_memory = dynamic_shared() + 2 * ROWS * D * 2;

    // A tile of the walk: a query head (the one of the block where it owns queries) and the first row.
    struct Place {
        int head, row;
    };
    const int end_head = OF_KEYS ? (kv_head + 1) * group : blockIdx.y + 1;
    auto first_visible = [&](Place place) {
        for (; place.head < end_head; place.head++, place.row = 0) {
            for (; place.row < num_streamed; place.row += STREAM) {
                int last_streamed = min(place.row + STREAM, num_streamed) - 1;
                bool none = OF_KEYS ? visible.none(sizes.query_start + place.row, sizes.query_start + last_streamed,
                                                   first, last)
                                    : visible.none(sizes.query_start + first, sizes.query_start + last, place.row,
                                                   last_streamed);
                if (!none) return place;
            }
        }
        return place;
    };
    auto copy_stage = [&](int stage, Place place) {
        SharedAddress to = stages + stage * STAGE_BYTES;
        i64 q_head = q_batch + place.head * D;
        copy_rows<STREAM, D, BACKWARD_THREADS>(to, OF_KEYS ? q + q_head : k + k_head, OF_KEYS ? q_stride : k_stride,
                                               place.row, num_streamed);
        copy_rows<STREAM, D, BACKWARD_THREADS>(to + TILE_BYTES, OF_KEYS ? d_out + q_head : v + k_head,
                                               OF_KEYS ? q_stride : k_stride, place.row, num_streamed);
        if (OF_KEYS && threadIdx.x < 2 * STREAM) {
            int row = place.row + threadIdx.x % STREAM;
            const float *from = threadIdx.x < STREAM ? lse : delta;
            bool valid = row < sizes.num_queries;
            i64 at = lse_batch + i64(place.head) * sizes.num_queries + row;
            copy_async_4(to + 2 * TILE_BYTES + threadIdx.x * 4, from + (valid ? at : 0), valid);
        }
        commit_copies();
    };

    float sums_1[D / 8][4], sums_2[OF_KEYS ? D / 8 : 1][4];
    clear(sums_1);
    clear(sums_2);

    i64 own_head = OF_KEYS ? k_head : q_batch + blockIdx.y * D;
    int own_stride = OF_KEYS ? k_stride : q_stride;
    copy_rows<ROWS, D, BACKWARD_THREADS>(own_1, (OF_KEYS ? k : q) + own_head, own_stride, first, num_own);
    copy_rows<ROWS, D, BACKWARD_THREADS>(own_2, (OF_KEYS ? v : d_out) + own_head, own_stride, first, num_own);
    commit_copies();
    float own_lse[2] = {}, own_delta[2] = {};
    if (!OF_KEYS) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = first + warp * 16 + half * 8 + lane / 4;
            i64 at = lse_batch + i64(blockIdx.y) * sizes.num_queries + row;
            if (row <= last) {
                own_lse[half] = lse[at] * LOG2_E;
                own_delta[half] = delta[at];
            }
        }
    }

    Place place = first_visible(Place{OF_KEYS ? kv_head * group : int(blockIdx.y), 0});
    int stage = 0;
    if (place.head < end_head) copy_stage(stage, place);
    while (place.head < end_head) {
        wait_copies<0>();
        // This stage is here, and everybody is done with the other.
        __syncthreads();
        Place next = first_visible(Place{place.head, place.row + STREAM});
        if (next.head < end_head) copy_stage(stage ^ 1, next);
        const SharedAddress streamed_1 = stages + stage * STAGE_BYTES, streamed_2 = streamed_1 + TILE_BYTES;
        const float *stream_lse =
            reinterpret_cast<const float *>(stage_memory + stage * STAGE_BYTES + 2 * TILE_BYTES);
        const float *stream_delta = stream_lse + STREAM;

        float p[STREAM / 8][4];
        clear(p);
        scores<STREAM, D>(p, own_1, warp * 16, streamed_1);

        int last_streamed = place.row + STREAM - 1;
        bool whole = last_streamed < num_streamed &&
                     (OF_KEYS ? visible.all(sizes.query_start + place.row, sizes.query_start + last_streamed, first,
                                            first + ROWS - 1)
                              : visible.all(sizes.query_start + first, sizes.query_start + first + ROWS - 1,
                                            place.row, last_streamed));
        const float factor = sizes.scale * LOG2_E;
#pragma unroll
        for (int n = 0; n < STREAM / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float base = OF_KEYS ? stream_lse[n * 8 + lane % 4 * 2 + i % 2] * LOG2_E : own_lse[i / 2];
                p[n][i] = exp2_fast(p[n][i] * factor - base);
            }
        }
        if (!whole) {
#pragma unroll
            for (int n = 0; n < STREAM / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int own = first + warp * 16 + i / 2 * 8 + lane / 4;
                    int streamed = place.row + n * 8 + lane % 4 * 2 + i % 2;
                    int query = sizes.query_start + (OF_KEYS ? streamed : own), key = OF_KEYS ? own : streamed;
                    bool inside = (streamed < num_streamed) & (own < num_own);
                    p[n][i] = inside & visible.sees(query, key) ? p[n][i] : 0.0f;
                }
            }
        }
        if constexpr (OF_KEYS) weigh<STREAM, D>(sums_2, p, streamed_2);

        float ds[STREAM / 8][4];
        clear(ds);
        scores<STREAM, D>(ds, own_2, warp * 16, streamed_2);
#pragma unroll
        for (int n = 0; n < STREAM / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float d = OF_KEYS ? stream_delta[n * 8 + lane % 4 * 2 + i % 2] : own_delta[i / 2];
                ds[n][i] = p[n][i] * (ds[n][i] - d);
            }
        }
        weigh<STREAM, D>(sums_1, ds, streamed_1);
        place = next;
        stage ^= 1;
    }
    wait_copies<0>();

    int row = first + warp * 16;
    store_rows<D>(first_gradient + own_head, own_stride, sums_1, row, num_own, sizes.scale, sizes.scale);
    if constexpr (OF_KEYS) store_rows<D>(second_gradient + own_head, own_stride, sums_2, row, num_own, 1.0f, 1.0f);
}

} // namespace
