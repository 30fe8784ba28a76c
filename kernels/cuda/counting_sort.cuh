// A stable counting sort over the grid, the same permutation always: tiles count their items of each bin, one block turns
// the counts into prefixes, tiles place their items. Sorting assignments by expert is one pass, sorting tokens by id one
// pass for each 8 bits.
//
// counts is u32 [bins, tiles], bin by bin, so that its prefix in memory order is where each tile's items of a bin begin.
#pragma once

#include "common.cuh"

namespace {

constexpr int SORT_THREADS = 256;
constexpr int SORT_WARPS = SORT_THREADS / WARP_LANES;
// Items a thread ranks; a warp's items are neighbours, and so are a tile's.
constexpr int SORT_ITEMS = 8;
constexpr int SORT_TILE = SORT_THREADS * SORT_ITEMS;
constexpr int MAX_BINS = 1024;

// The place of this thread's item `i` in the whole.
__device__ __forceinline__ i64 sort_place(int i) {
    const int warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;
    return (i64)blockIdx.x * SORT_TILE + (warp * SORT_ITEMS + i) * WARP_LANES + lane;
}

// First launch, a block a tile: counts[bin, tile]. `bin_of(place)` is asked for places below n.
template <class BinOf> __device__ __forceinline__ void count_tile(u32 *counts, i64 n, int bins, BinOf bin_of) {
    __shared__ u32 histogram[MAX_BINS];
    for (int bin = threadIdx.x; bin < bins; bin += SORT_THREADS) histogram[bin] = 0;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < SORT_ITEMS; i++) {
        if (sort_place(i) < n) atomicAdd(&histogram[bin_of(sort_place(i))], 1u);
    }
    __syncthreads();
    for (int bin = threadIdx.x; bin < bins; bin += SORT_THREADS) counts[(i64)bin * gridDim.x + blockIdx.x] = histogram[bin];
}

__device__ __forceinline__ u32 lanes_inclusive_sum(u32 x) {
    const int lane = threadIdx.x % WARP_LANES;
#pragma unroll
    for (int step = 1; step < WARP_LANES; step *= 2) {
        const u32 before = __shfl_up_sync(FULL_MASK, x, step);
        if (lane >= step) x += before;
    }
    return x;
}

// The sum of x over the threads before this one, for one block of MAX_BINS threads.
__device__ __forceinline__ u32 block_exclusive_sum(u32 x, u32 *scratch) {
    const int warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;
    const u32 inclusive = lanes_inclusive_sum(x);
    if (lane == WARP_LANES - 1) scratch[warp] = inclusive;
    __syncthreads();
    const u32 warps = lanes_inclusive_sum(scratch[lane]);
    // What the warps before this one sum to, fetched from the lane that knows it.
    const u32 before = __shfl_sync(FULL_MASK, warps, warp > 0 ? warp - 1 : 0);
    return (warp > 0 ? before : 0) + inclusive - x;
}

// Second launch, one block of MAX_BINS threads: counts become the items of the same bin in earlier tiles. Returns the
// total of bin threadIdx.x, 0 beyond the bins.
__device__ __forceinline__ u32 scan_tiles(u32 *counts, int tiles, int bins) {
    __shared__ u32 totals[MAX_BINS];
    const int warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;
    totals[threadIdx.x] = 0;
    __syncthreads();
    for (int bin = warp; bin < bins; bin += MAX_BINS / WARP_LANES) {
        u32 *row = counts + (i64)bin * tiles;
        u32 total = 0;
        for (int first = 0; first < tiles; first += WARP_LANES) {
            const bool inside = first + lane < tiles;
            const u32 count = inside ? row[first + lane] : 0;
            const u32 inclusive = lanes_inclusive_sum(count);
            if (inside) row[first + lane] = total + inclusive - count;
            total += __shfl_sync(FULL_MASK, inclusive, WARP_LANES - 1);
        }
        if (lane == 0) totals[bin] = total;
    }
    __syncthreads();
    return totals[threadIdx.x];
}

// Third launch, a block a tile: bins[i] of each item of this thread, -1 behind the end, and ranks[i], the items of its bin
// before it in all tiles. Dynamic shared memory: SORT_WARPS * bins * 4 bytes.
template <class BinOf>
__device__ __forceinline__ void rank_tile(const u32 *counts, i64 n, int num_bins, BinOf bin_of, int (&bins)[SORT_ITEMS],
                                          u32 (&ranks)[SORT_ITEMS]) {
    u32 *seen = (u32 *)dynamic_shared();
    const int warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;
    for (int i = threadIdx.x; i < SORT_WARPS * num_bins; i += SORT_THREADS) seen[i] = 0;
    __syncthreads();
    u32 *warp_seen = seen + warp * num_bins;
#pragma unroll
    for (int i = 0; i < SORT_ITEMS; i++) {
        bins[i] = sort_place(i) < n ? bin_of(sort_place(i)) : -1;
        const u32 same = __match_any_sync(FULL_MASK, bins[i]);
        const u32 before = __popc(same & ((1u << lane) - 1));
        ranks[i] = bins[i] >= 0 ? warp_seen[bins[i]] + before : 0;
        __syncwarp();
        if (bins[i] >= 0 && before == 0) warp_seen[bins[i]] += __popc(same);
        __syncwarp();
    }
    __syncthreads();
    // Each warp's count becomes what the tiles and the warps before it hold.
    for (int bin = threadIdx.x; bin < num_bins; bin += SORT_THREADS) {
        u32 total = counts[(i64)bin * gridDim.x + blockIdx.x];
#pragma unroll
        for (int w = 0; w < SORT_WARPS; w++) {
            const u32 count = seen[w * num_bins + bin];
            seen[w * num_bins + bin] = total;
            total += count;
        }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < SORT_ITEMS; i++) {
        if (bins[i] >= 0) ranks[i] += warp_seen[bins[i]];
    }
}

} // namespace
