// The backward of attention: see attention.cuh for shapes, launches and masks.
#pragma once

#include "attention.cuh"

namespace {

constexpr int BACKWARD_THREADS = 256;

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
