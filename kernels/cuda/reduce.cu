// Sums over whole tensors and over the rows of a matrix, in a fixed order: the same bits for one shape on every device.
//
// sum, sum_of_squares: x [n] -> partials f64 [blocks]; a block sums PER_BLOCK elements. Reads the tensor once.
// finish_sum: partials f64 [n] -> total f64 [1], one block.
// column_sums: x [t, n] -> partials f32 [blocks, n]; a block sums ROWS_PER_BLOCK rows of 32 chunks of columns.
// add_column_sums: out f32 [n] += sum over rows of partials f32 [t, n]. It is the second half of every gradient that is
// summed over tokens.
// Launch: geometry::sum, geometry::column_sums, geometry::add_column_sums.
#include "common.cuh"

constexpr int SUM_THREADS = 256;
// Chunks of 16 bytes for each thread of a block, all under way at once.
constexpr int CHUNKS = 8;
constexpr int COLUMN_THREADS = 256;
constexpr int ROWS_PER_BLOCK = 256;

struct Identity {
    __device__ float operator()(float x) const { return x; }
};
struct Square {
    __device__ float operator()(float x) const { return x * x; }
};

template <class T, bool WIDE, class Term> __device__ __forceinline__ double thread_sum(const T *x, i64 n, Term term) {
    constexpr int LANES = LANES_OF<T>;
    const i64 first = (i64)blockIdx.x * (SUM_THREADS * CHUNKS * LANES);
    // Within a block, so that offsets fit 32 bits.
    const int left = int(min(n - first, (i64)(SUM_THREADS * CHUNKS * LANES)));
    uint4 chunks[CHUNKS];
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        chunks[c] = load_chunk<T, WIDE>(x + first, (threadIdx.x + c * SUM_THREADS) * LANES, left);
    }
    double total = 0.0;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        float values[LANES], sum = 0.0f;
        unpack(chunks[c], values);
#pragma unroll
        for (int i = 0; i < LANES; i++) sum += term(values[i]);
        total += sum;
    }
    return total;
}

template <class T, class Term> __device__ __forceinline__ void block_partial(const T *x, double *partials, i64 n, Term term) {
    __shared__ double scratch[MAX_WARPS];
    const i64 end = (i64)(blockIdx.x + 1) * (SUM_THREADS * CHUNKS * LANES_OF<T>);
    const bool whole = is_wide(x, 0) && end <= n;
    double total = whole ? thread_sum<T, true>(x, n, term) : thread_sum<T, false>(x, n, term);
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

extern "C" __global__ void __launch_bounds__(SUM_THREADS) sum_f32(const float *x, double *partials, i64 n) {
    block_partial(x, partials, n, Identity());
}

extern "C" __global__ void __launch_bounds__(SUM_THREADS) sum_bf16(const bf16 *x, double *partials, i64 n) {
    block_partial(x, partials, n, Identity());
}

extern "C" __global__ void __launch_bounds__(SUM_THREADS) sum_of_squares_f32(const float *x, double *partials, i64 n) {
    block_partial(x, partials, n, Square());
}

extern "C" __global__ void __launch_bounds__(SUM_THREADS) sum_of_squares_bf16(const bf16 *x, double *partials, i64 n) {
    block_partial(x, partials, n, Square());
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS) finish_sum(const double *partials, double *total, i64 n) {
    __shared__ double scratch[MAX_WARPS];
    double sum = 0.0;
    for (i64 i = threadIdx.x; i < n; i += blockDim.x) sum += partials[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) *total = sum;
}

// The block is 32 chunks wide and 8 rows high; each thread walks down every eighth row of its chunk of columns.
template <class T, bool WIDE> __device__ void column_partials(const T *x, float *partials, i64 t, int n) {
    constexpr int LANES = LANES_OF<T>;
    constexpr int HEIGHT = COLUMN_THREADS / WARP_LANES;
    __shared__ float sums[HEIGHT][WARP_LANES * LANES];
    const int lane = threadIdx.x % WARP_LANES, warp = threadIdx.x / WARP_LANES;
    const int at = (blockIdx.y * WARP_LANES + lane) * LANES;
    const i64 first = (i64)blockIdx.x * ROWS_PER_BLOCK;
    float total[LANES] = {};
    if (at < n) {
#pragma unroll 8
        for (int i = warp; i < ROWS_PER_BLOCK; i += HEIGHT) {
            if (first + i >= t) continue;
            float values[LANES];
            unpack(load_chunk<T, WIDE>(x + (first + i) * n, at, n), values);
#pragma unroll
            for (int j = 0; j < LANES; j++) total[j] += values[j];
        }
    }
#pragma unroll
    for (int j = 0; j < LANES; j++) sums[warp][lane * LANES + j] = total[j];
    __syncthreads();
    for (int i = threadIdx.x; i < WARP_LANES * LANES; i += COLUMN_THREADS) {
        const int column = blockIdx.y * WARP_LANES * LANES + i;
        float sum = 0.0f;
#pragma unroll
        for (int row = 0; row < HEIGHT; row++) sum += sums[row][i];
        if (column < n) partials[(i64)blockIdx.x * n + column] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS)
column_sums_f32(const float *x, float *partials, i64 t, int n) {
    if (is_wide(x, n)) {
        column_partials<float, true>(x, partials, t, n);
    } else {
        column_partials<float, false>(x, partials, t, n);
    }
}

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS)
column_sums_bf16(const bf16 *x, float *partials, i64 t, int n) {
    if (is_wide(x, n)) {
        column_partials<bf16, true>(x, partials, t, n);
    } else {
        column_partials<bf16, false>(x, partials, t, n);
    }
}

// The block is 32 columns wide and 32 rows high.
extern "C" __global__ void __launch_bounds__(MAX_THREADS)
add_column_sums(const float *partials, float *out, i64 t, int n) {
    __shared__ float sums[WARP_LANES][WARP_LANES + 1];
    const int lane = threadIdx.x % WARP_LANES, warp = threadIdx.x / WARP_LANES;
    const int column = blockIdx.x * WARP_LANES + lane;
    float total = 0.0f;
    if (column < n) {
#pragma unroll 4
        for (i64 row = warp; row < t; row += WARP_LANES) total += partials[row * n + column];
    }
    sums[warp][lane] = total;
    __syncthreads();
    // Turned round, each warp sums one column.
    total = lanes_sum(sums[lane][warp]);
    const int summed = blockIdx.x * WARP_LANES + warp;
    if (lane == 0 && summed < n) out[summed] += total;
}
