// Embedding look-up: row t of x is the table's row of id t; backward, each row of the table gains the rows of its tokens.
//
// Shapes: ids i32 [t]; table [v, d]; x, dx [t, d]; dtable f32 [v, d], it accumulates. An id outside the vocabulary gives a
// row of NaN and no gradient: the step is seen to be spoiled, nothing outside is touched.
// The backward sorts the tokens by id, 8 bits a pass and stable (embedding_sort_*), and sums runs of equal ids in token
// order: no atomics, the same bits always. A block sums RUN_TILE sorted tokens; runs that cross its border leave a partial
// row, and embedding_backward_runs joins them, so that a frequent token costs no long chain.
// Launch: geometry::embedding_forward, embedding_sort, embedding_backward.
// Bytes: forward 2*t*d elements. Backward t*d elements read, rows of dtable that occur read and written in f32, and
// partials of 8*d bytes for each RUN_TILE tokens.
#include "counting_sort.cuh"

constexpr int LOOKUP_THREADS = 512;
// Chunks of a row whose loads are under way at once.
constexpr int BATCH = 2;
constexpr int RADIX_BITS = 8;
constexpr int RADIX = 1 << RADIX_BITS;
constexpr int RUN_TILE = 64;
constexpr int RUN_THREADS = 128;
// Sorted rows whose loads are under way at once.
constexpr int RUN_BATCH = 4;

template <class W, class X, bool WIDE>
__device__ void look_up_row(const i32 *ids_t, const W *table, X *x, i64 t, int v, int d, int width) {
    constexpr int LANES = LANES_OF<W> > LANES_OF<X> ? LANES_OF<W> : LANES_OF<X>;
    const RowShare share = row_share(width);
    if (share.row >= t) return;
    const i32 id = ids_t[share.row];
    const bool known = id >= 0 && id < v;
    const int step = width * LANES;
    for (int first = share.lane * LANES; first < d; first += BATCH * step) {
        float values[BATCH][LANES];
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
#pragma unroll
            for (int i = 0; i < LANES; i++) values[b][i] = __uint_as_float(0x7fffffffu);
            const int at = first + b * step;
            if (known && at < d) load_values<W, LANES, WIDE>(table + (i64)id * d, at, d, values[b]);
        }
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            if (first + b * step < d) store_values<X, LANES, WIDE>(x + share.row * d, first + b * step, d, values[b]);
        }
    }
}

template <class W, class X>
__device__ __forceinline__ void look_up(const i32 *ids_t, const W *table, X *x, i64 t, int v, int d, int width) {
    if (is_wide(table, d) && is_wide(x, d)) {
        look_up_row<W, X, true>(ids_t, table, x, t, v, d, width);
    } else {
        look_up_row<W, X, false>(ids_t, table, x, t, v, d, width);
    }
}

extern "C" __global__ void __launch_bounds__(LOOKUP_THREADS)
embedding_forward_f32_f32(const i32 *ids_t, const float *table, float *x, i64 t, int v, int d, int width) {
    look_up(ids_t, table, x, t, v, d, width);
}

extern "C" __global__ void __launch_bounds__(LOOKUP_THREADS)
embedding_forward_f32_bf16(const i32 *ids_t, const float *table, bf16 *x, i64 t, int v, int d, int width) {
    look_up(ids_t, table, x, t, v, d, width);
}

extern "C" __global__ void __launch_bounds__(LOOKUP_THREADS)
embedding_forward_bf16_f32(const i32 *ids_t, const bf16 *table, float *x, i64 t, int v, int d, int width) {
    look_up(ids_t, table, x, t, v, d, width);
}

extern "C" __global__ void __launch_bounds__(LOOKUP_THREADS)
embedding_forward_bf16_bf16(const i32 *ids_t, const bf16 *table, bf16 *x, i64 t, int v, int d, int width) {
    look_up(ids_t, table, x, t, v, d, width);
}

__device__ __forceinline__ int digit(i32 id, int shift) { return int((u32)id >> shift) & (RADIX - 1); }

// counts u32 [RADIX, tiles] of the 8 bits from `shift` on.
extern "C" __global__ void __launch_bounds__(SORT_THREADS)
embedding_sort_count(const i32 *ids, u32 *counts, i64 n, int shift) {
    count_tile(counts, n, RADIX, [&](i64 place) { return digit(ids[place], shift); });
}

// starts u32 [RADIX]: where the items of each digit begin.
extern "C" __global__ void __launch_bounds__(MAX_BINS) embedding_sort_scan(u32 *counts, u32 *starts, int tiles) {
    __shared__ u32 scratch[MAX_WARPS];
    const u32 total = scan_tiles(counts, tiles, RADIX);
    const u32 start = block_exclusive_sum(total, scratch);
    if (threadIdx.x < RADIX) starts[threadIdx.x] = start;
}

// tokens is null in the first pass, where item i is token i.
extern "C" __global__ void __launch_bounds__(SORT_THREADS)
embedding_sort_place(const i32 *ids, const i32 *tokens, const u32 *counts, const u32 *starts, i32 *sorted_ids,
                     i32 *sorted_tokens, i64 n, int shift) {
    int digits[SORT_ITEMS];
    u32 ranks[SORT_ITEMS];
    rank_tile(counts, n, RADIX, [&](i64 place) { return digit(ids[place], shift); }, digits, ranks);
#pragma unroll
    for (int i = 0; i < SORT_ITEMS; i++) {
        const i64 place = sort_place(i);
        if (place >= n) continue;
        const u32 target = starts[digits[i]] + ranks[i];
        sorted_ids[target] = ids[place];
        sorted_tokens[target] = tokens ? tokens[place] : i32(place);
    }
}

template <int LANES, bool WIDE>
__device__ __forceinline__ void add_to_row(float *dtable, i32 id, int v, int at, int d, float (&total)[LANES]) {
    if (id < 0 || id >= v) return;
    float *row = dtable + (i64)id * d;
    float before[LANES];
    load_values<float, LANES, WIDE>(row, at, d, before);
#pragma unroll
    for (int i = 0; i < LANES; i++) before[i] += total[i];
    store_values<float, LANES, WIDE>(row, at, d, before);
}

// Whether the run of item `place` goes on beyond it.
__device__ __forceinline__ bool goes_on(const i32 *ids, i64 place, i64 n) {
    return place + 1 < n && ids[place] == ids[place + 1];
}

// partials f32 [tiles, 2, d]: the sum of a run that began before the tile, and of one that begins in it and leaves it.
template <class T, bool WIDE>
__device__ void sum_tile(const T *dx, const i32 *ids, const i32 *tokens, float *partials, float *dtable, i64 n, int v, int d) {
    constexpr int LANES = LANES_OF<T>;
    const int at = (blockIdx.y * RUN_THREADS + threadIdx.x) * LANES;
    if (at >= d) return;
    const i64 first = (i64)blockIdx.x * RUN_TILE;
    const i64 end = min(first + RUN_TILE, n);
    float *partial = partials + (i64)blockIdx.x * 2 * d;
    bool began_before = first > 0 && goes_on(ids, first - 1, n);
    float total[LANES] = {};
    for (i64 place = first; place < end; place += RUN_BATCH) {
        uint4 chunks[RUN_BATCH];
#pragma unroll
        for (int i = 0; i < RUN_BATCH; i++) {
            if (place + i < end) chunks[i] = load_chunk<T, WIDE>(dx + (i64)tokens[place + i] * d, at, d);
        }
#pragma unroll
        for (int i = 0; i < RUN_BATCH; i++) {
            if (place + i >= end) continue;
            float values[LANES];
            unpack(chunks[i], values);
#pragma unroll
            for (int j = 0; j < LANES; j++) total[j] += values[j];
            const bool leaves = goes_on(ids, place + i, n);
            if (leaves && place + i + 1 < end) continue;
            if (began_before || leaves) {
                store_values<float, LANES, WIDE>(partial + (began_before ? 0 : d), at, d, total);
            } else {
                add_to_row<LANES, WIDE>(dtable, ids[place + i], v, at, d, total);
            }
            began_before = false;
#pragma unroll
            for (int j = 0; j < LANES; j++) total[j] = 0.0f;
        }
    }
}

template <class T>
__device__ __forceinline__ void sum_tiles(const T *dx, const i32 *ids, const i32 *tokens, float *partials, float *dtable,
                                          i64 n, int v, int d) {
    if (is_wide(dx, d) && is_wide(dtable, d) && is_wide(partials, d)) {
        sum_tile<T, true>(dx, ids, tokens, partials, dtable, n, v, d);
    } else {
        sum_tile<T, false>(dx, ids, tokens, partials, dtable, n, v, d);
    }
}

extern "C" __global__ void __launch_bounds__(RUN_THREADS, 8)
embedding_backward_tiles_f32(const float *dx, const i32 *sorted_ids, const i32 *sorted_tokens, float *partials, float *dtable,
                             i64 n, int v, int d) {
    sum_tiles(dx, sorted_ids, sorted_tokens, partials, dtable, n, v, d);
}

extern "C" __global__ void __launch_bounds__(RUN_THREADS, 8)
embedding_backward_tiles_bf16(const bf16 *dx, const i32 *sorted_ids, const i32 *sorted_tokens, float *partials, float *dtable,
                              i64 n, int v, int d) {
    sum_tiles(dx, sorted_ids, sorted_tokens, partials, dtable, n, v, d);
}

// The block of the tile where a run begins that leaves it joins the run's partials.
template <bool WIDE>
__device__ void join_runs(const i32 *ids, const float *partials, float *dtable, i64 n, int v, int d) {
    constexpr int LANES = 4;
    const int at = (blockIdx.y * RUN_THREADS + threadIdx.x) * LANES;
    const i64 first = (i64)blockIdx.x * RUN_TILE;
    const i64 last = min(first + RUN_TILE, n) - 1;
    if (at >= d || !goes_on(ids, last, n)) return;
    const i32 id = ids[last];
    const bool began_before = first > 0 && ids[first - 1] == id;
    if (began_before) return;
    float total[LANES];
    load_values<float, LANES, WIDE>(partials + ((i64)blockIdx.x * 2 + 1) * d, at, d, total);
    for (i64 tile = blockIdx.x + 1;; tile++) {
        float part[LANES];
        load_values<float, LANES, WIDE>(partials + tile * 2 * d, at, d, part);
#pragma unroll
        for (int i = 0; i < LANES; i++) total[i] += part[i];
        const i64 end = min((tile + 1) * RUN_TILE, n);
        if (ids[end - 1] != id || !goes_on(ids, end - 1, n)) break;
    }
    add_to_row<LANES, WIDE>(dtable, id, v, at, d, total);
}

extern "C" __global__ void __launch_bounds__(RUN_THREADS)
embedding_backward_runs(const i32 *sorted_ids, const float *partials, float *dtable, i64 n, int v, int d) {
    if (is_wide(dtable, d) && is_wide(partials, d)) {
        join_runs<true>(sorted_ids, partials, dtable, n, v, d);
    } else {
        join_runs<false>(sorted_ids, partials, dtable, n, v, d);
    }
}
