// The routing plan, made on the device: histogram of the assignments, offsets, and a stable sort by expert with its
// inverse map. No count ever goes to the host.
//
// Shapes: indices i32 [t, k], n = t*k assignments; counts u32 [e, tiles] scratch; tokens_per_expert, load i32 [e]; offsets
// i32 [e + 1]; row_to_token, row_to_assignment i32 [n]; token_to_rows i32 [t, k]; weights f32 [t, k], weights_r f32 [n].
// Rows are sorted by expert and, within one, by token. With a capacity, assignments are served in order and those behind
// it have row -1. Rows behind the last offset belong to nobody: -1 in both maps, weight 0.
// Launch, in turn: routing_count (geometry::routing_tiles), routing_offsets (geometry::routing_offsets), routing_place
// (geometry::routing_tiles). e is at most 1024.
// Bytes: the indices twice, four values a row; 2048 assignments a block.
#include "counting_sort.cuh"

extern "C" __global__ void __launch_bounds__(SORT_THREADS) routing_count(const i32 *indices_tk, u32 *counts, i64 n, int e) {
    count_tile(counts, n, e, [&](i64 place) { return indices_tk[place]; });
}

// tokens_per_expert counts dropped assignments too; load, which may be null, gains the same.
extern "C" __global__ void __launch_bounds__(MAX_BINS)
routing_offsets(u32 *counts, i32 *tokens_per_expert, i32 *load_e, i32 *offsets_e, int tiles, int e, int capacity) {
    __shared__ u32 scratch[MAX_WARPS];
    const int expert = threadIdx.x;
    const u32 tokens = scan_tiles(counts, tiles, e);
    const u32 kept = min(tokens, (u32)capacity);
    const u32 before = block_exclusive_sum(kept, scratch);
    if (expert >= e) return;
    tokens_per_expert[expert] = tokens;
    if (load_e) load_e[expert] += tokens;
    offsets_e[expert] = before;
    if (expert == e - 1) offsets_e[e] = before + kept;
}

extern "C" __global__ void __launch_bounds__(SORT_THREADS)
routing_place(const i32 *indices_tk, const u32 *counts, const i32 *offsets_e, const float *weights_tk, i32 *row_to_token,
              i32 *row_to_assignment, i32 *token_to_rows, float *weights_r, i64 n, int k, int e, int capacity) {
    int experts[SORT_ITEMS];
    u32 ranks[SORT_ITEMS];
    rank_tile(counts, n, e, [&](i64 place) { return indices_tk[place]; }, experts, ranks);
    const i32 num_rows = offsets_e[e];
#pragma unroll
    for (int i = 0; i < SORT_ITEMS; i++) {
        const i64 place = sort_place(i);
        if (place >= n) continue;
        const bool kept = ranks[i] < (u32)capacity;
        const i32 row = kept ? offsets_e[experts[i]] + i32(ranks[i]) : -1;
        token_to_rows[place] = row;
        if (kept) {
            row_to_token[row] = i32(place / k);
            row_to_assignment[row] = i32(place);
            weights_r[row] = weights_tk[place];
        }
        // The rows behind the last one are as many as assignments were dropped.
        if (place >= num_rows) {
            row_to_token[place] = -1;
            row_to_assignment[place] = -1;
            weights_r[place] = 0.0f;
        }
    }
}

// load_ge: the assignments per expert of each group of `per_group` assignments, for a balance loss per sequence. A block a
// group.
extern "C" __global__ void __launch_bounds__(SORT_THREADS)
routing_group_load(const i32 *indices_tk, i32 *load_ge, i64 per_group, int e) {
    __shared__ i32 load[MAX_BINS];
    for (int expert = threadIdx.x; expert < e; expert += SORT_THREADS) load[expert] = 0;
    __syncthreads();
    for (i64 i = threadIdx.x; i < per_group; i += SORT_THREADS) {
        atomicAdd(&load[indices_tk[blockIdx.x * per_group + i]], 1);
    }
    __syncthreads();
    for (int expert = threadIdx.x; expert < e; expert += SORT_THREADS) load_ge[(i64)blockIdx.x * e + expert] = load[expert];
}
