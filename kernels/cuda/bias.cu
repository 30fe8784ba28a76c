// Bias of a projection: y = x + bias, the bias added to each row.
//
// Shapes: x, y [t, n], y may be x; bias f32 [n]. The backward is column_sums and add_column_sums of reduce.cu.
// Launch: geometry::bias; `width` threads a row.
// Bytes: x read, y written; the bias comes from cache.
#include "common.cuh"

constexpr int BIAS_THREADS = 512;
// Chunks whose loads are under way at once.
constexpr int BATCH = 2;

template <class T, bool WIDE>
__device__ void add_row(const T *x, const float *bias_n, T *y, i64 t, int n, int width) {
    constexpr int LANES = LANES_OF<T>;
    const RowShare share = row_share(width);
    if (share.row >= t) return;
    const int step = width * LANES;
    for (int first = share.lane * LANES; first < n; first += BATCH * step) {
        uint4 chunks[BATCH];
        load_batch<T, WIDE>(x + share.row * n, first, step, n, chunks);
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            const int at = first + b * step;
            if (at >= n) continue;
            float values[LANES], biases[LANES];
            unpack(chunks[b], values);
            load_values<float, LANES, WIDE>(bias_n, at, n, biases);
#pragma unroll
            for (int i = 0; i < LANES; i++) values[i] += biases[i];
            store_values<T, LANES, WIDE>(y + share.row * n, at, n, values);
        }
    }
}

template <class T>
__device__ __forceinline__ void forward(const T *x, const float *bias_n, T *y, i64 t, int n, int width) {
    if (is_wide(x, n) && is_wide(y, n) && is_wide(bias_n, n)) {
        add_row<T, true>(x, bias_n, y, t, n, width);
    } else {
        add_row<T, false>(x, bias_n, y, t, n, width);
    }
}

extern "C" __global__ void __launch_bounds__(BIAS_THREADS)
bias_forward_f32(const float *x, const float *bias_n, float *y, i64 t, int n, int width) {
    forward(x, bias_n, y, t, n, width);
}

extern "C" __global__ void __launch_bounds__(BIAS_THREADS)
bias_forward_bf16(const bf16 *x, const float *bias_n, bf16 *y, i64 t, int n, int width) {
    forward(x, bias_n, y, t, n, width);
}
