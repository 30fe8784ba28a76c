// Moving rows between token order and expert order.
//
// Shapes: x [t, d], rows i32 [r], out [r, d]; y [r, d], token_rows i32 [t, k], out [t, d]. An index of -1 stands for no
// row: zeros in gather, skipped in gather_sum. Every row of the output is written, so nothing is left uninitialised.
// When token_rows is the inverse map of rows, each is the other's backward. A column of routing weights is d = 1.
// Launch: geometry::permute over the rows of the output; `width` threads a row.
// Bytes: gather 2*r*d elements, gather_sum (r + t)*d; sums are taken in f32 in the order of k, the same bits always.
#include "common.cuh"

constexpr int PERMUTE_THREADS = 512;
// Chunks of a row, or rows of a token, whose loads are under way at once.
constexpr int BATCH = 4;

template <class T, bool WIDE>
__device__ void gather_row(const T *__restrict__ x, const i32 *__restrict__ rows_r, T *__restrict__ out, i64 r, int d,
                           int width) {
    constexpr int LANES = LANES_OF<T>;
    const RowShare share = row_share(width);
    if (share.row >= r) return;
    const i32 source = rows_r[share.row];
    const int step = width * LANES;
    for (int first = share.lane * LANES; first < d; first += BATCH * step) {
        uint4 chunks[BATCH] = {};
        if (source >= 0) load_batch<T, WIDE>(x + (i64)source * d, first, step, d, chunks);
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            float values[LANES];
            unpack(chunks[i], values);
            if (first + i * step < d) store_values<T, LANES, WIDE>(out + share.row * d, first + i * step, d, values);
        }
    }
}

template <class T, bool WIDE>
__device__ void gather_sum_row(const T *__restrict__ y, const i32 *__restrict__ token_rows, T *__restrict__ out, i64 t, int k,
                               int d, int width) {
    constexpr int LANES = LANES_OF<T>;
    const RowShare share = row_share(width);
    if (share.row >= t) return;
    const i32 *sources = token_rows + share.row * k;
    for (int at = share.lane * LANES; at < d; at += width * LANES) {
        float total[LANES] = {};
        for (int first = 0; first < k; first += BATCH) {
            uint4 chunks[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                const i32 source = first + i < k ? sources[first + i] : -1;
                chunks[i] = make_uint4(0, 0, 0, 0);
                if (source >= 0) chunks[i] = load_chunk<T, WIDE>(y + (i64)source * d, at, d);
            }
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                float values[LANES];
                unpack(chunks[i], values);
#pragma unroll
                for (int j = 0; j < LANES; j++) total[j] += values[j];
            }
        }
        store_values<T, LANES, WIDE>(out + share.row * d, at, d, total);
    }
}

template <class T>
__device__ __forceinline__ void gather(const T *x, const i32 *rows_r, T *out, i64 r, int d, int width) {
    if (is_wide(x, d) && is_wide(out, d)) {
        gather_row<T, true>(x, rows_r, out, r, d, width);
    } else {
        gather_row<T, false>(x, rows_r, out, r, d, width);
    }
}

template <class T>
__device__ __forceinline__ void gather_sum(const T *y, const i32 *token_rows, T *out, i64 t, int k, int d, int width) {
    if (is_wide(y, d) && is_wide(out, d)) {
        gather_sum_row<T, true>(y, token_rows, out, t, k, d, width);
    } else {
        gather_sum_row<T, false>(y, token_rows, out, t, k, d, width);
    }
}

extern "C" __global__ void __launch_bounds__(PERMUTE_THREADS)
gather_f32(const float *x, const i32 *rows_r, float *out, i64 r, int d, int width) {
    gather(x, rows_r, out, r, d, width);
}

extern "C" __global__ void __launch_bounds__(PERMUTE_THREADS)
gather_bf16(const bf16 *x, const i32 *rows_r, bf16 *out, i64 r, int d, int width) {
    gather(x, rows_r, out, r, d, width);
}

extern "C" __global__ void __launch_bounds__(PERMUTE_THREADS)
gather_sum_f32(const float *y, const i32 *token_rows, float *out, i64 t, int k, int d, int width) {
    gather_sum(y, token_rows, out, t, k, d, width);
}

extern "C" __global__ void __launch_bounds__(PERMUTE_THREADS)
gather_sum_bf16(const bf16 *y, const i32 *token_rows, bf16 *out, i64 t, int k, int d, int width) {
    gather_sum(y, token_rows, out, t, k, d, width);
}
