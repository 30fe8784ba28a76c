// The routing plan, made on the device: histogram of the assignments, offsets, and a stable sort by expert with its
// inverse map. No count ever goes to the host.
//
// Shapes: indices i32 [t, k], n = t*k assignments; counts u32 [e, tiles] scratch; tokens_per_expert i32 [e]; offsets
// i32 [e + 1]; row_to_token i32 [r]; token_to_rows i32 [t, k]; weights f32 [t, k], weights_r f32 [r]. r is n, or
// e * capacity where that is less.
// Rows are sorted by expert and, within one, by token. With a capacity, assignments are served in order and those behind
// it have row -1. Rows behind the last offset belong to nobody: token -1, weight 0.
// Launch, in turn: routing_count, routing_offsets, routing_place (geometry::routing_plan). e is at most 1024.
// Bytes: the indices twice, three values a row; 2048 assignments a block.
#include "counting_sort.cuh"

extern "C" __global__ void __launch_bounds__(SORT_THREADS) routing_count(const i32 *indices_tk, u32 *counts, i64 n, int e) {
    count_tile(counts, n, e, [&](i64 place) { return indices_tk[place]; });
}

// tokens_per_expert counts dropped assignments too.
extern "C" __global__ void __launch_bounds__(MAX_BINS)
routing_offsets(u32 *counts, i32 *tokens_per_expert, i32 *offsets_e, int tiles, int e, int capacity) {
    __shared__ u32 scratch[MAX_WARPS];
    const int expert = threadIdx.x;
    const u32 tokens = scan_tiles(counts, tiles, e);
    const u32 kept = min(tokens, (u32)capacity);
    const u32 before = block_exclusive_sum(kept, scratch);
    if (expert >= e) return;
    tokens_per_expert[expert] = tokens;
    offsets_e[expert] = before;
    if (expert == e - 1) offsets_e[e] = before + kept;
}

extern "C" __global__ void __launch_bounds__(SORT_THREADS)
routing_place(const i32 *indices_tk, const u32 *counts, const i32 *offsets_e, const float *weights_tk, i32 *row_to_token,
              i32 *token_to_rows, float *weights_r, i64 n, i64 r, int k, int e, int capacity) {
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
            weights_r[row] = weights_tk[place];
        }
        // There are no more rows than assignments, so each row behind the last offset has a thread.
        if (place >= num_rows && place < r) {
            row_to_token[place] = -1;
            weights_r[place] = 0.0f;
        }
    }
}
