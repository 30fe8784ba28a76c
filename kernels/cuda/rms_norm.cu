// Root-mean-square normalisation, y = w*x*rstd with rstd = 1 / sqrt(mean(x^2) + eps), row by row, with the residual sum
// before it folded in.
//
// Shapes: x, residual, sum, y, dy, dx [t, d]; w, dw [d]; rstd f32 [t]; partials f32 [blocks, d]. d is at most MAX_CHUNKS
// chunks of 16 bytes for each of THREADS threads: 8192 of bf16, 4096 of f32.
// Launch: geometry::rms_norm and geometry::rms_norm_backward; `width` threads a row.
// Bytes: forward reads x (and residual) and writes y (and sum), w comes from cache; backward reads dy and x, reads and
// writes dx when it accumulates, and writes 4*blocks*d of partials. dw += column sums of the partials: reduce.cu.
//
// A row stays in registers between its two passes. The backward walks down the rows with the next row's loads under way,
// each thread gathering dw of its own columns, so that dy and x are read once.
#include "common.cuh"

constexpr int MAX_CHUNKS = 2;
// With more, the backward would not have the registers it needs.
constexpr int THREADS = 512;

template <class T, class W, bool WIDE>
__device__ void forward_row(const T *x, const T *residual, const W *w, T *sum, T *y, float *rstd_t, i64 t, int d, int width,
                            float eps) {
    constexpr int LANES = LANES_OF<T>;
    __shared__ float scratch[MAX_WARPS];
    const RowShare share = row_share(width);
    const bool active = share.row < t;
    const i64 start = share.row * d;
    uint4 rows[MAX_CHUNKS] = {}, residuals[MAX_CHUNKS] = {};
#pragma unroll
    for (int c = 0; c < MAX_CHUNKS; c++) {
        const int at = (share.lane + c * width) * LANES;
        if (!active || at >= d) continue;
        rows[c] = load_chunk<T, WIDE>(x + start, at, d);
        if (residual) residuals[c] = load_chunk<T, WIDE>(residual + start, at, d);
    }
    float squares = 0.0f;
#pragma unroll
    for (int c = 0; c < MAX_CHUNKS; c++) {
        const int at = (share.lane + c * width) * LANES;
        float values[LANES];
        unpack(rows[c], values);
        if (residual) {
            float others[LANES];
            unpack(residuals[c], others);
#pragma unroll
            for (int i = 0; i < LANES; i++) values[i] = rounded_to<T>(values[i] + others[i]);
            rows[c] = pack(values);
            if (active && at < d) store_values<T, LANES, WIDE>(sum + start, at, d, values);
        }
#pragma unroll
        for (int i = 0; i < LANES; i++) squares += values[i] * values[i];
    }
    const float rstd = 1.0f / sqrtf(row_sum(squares, width, scratch) / d + eps);
    if (!active) return;
    if (share.lane == 0) rstd_t[share.row] = rstd;
#pragma unroll
    for (int c = 0; c < MAX_CHUNKS; c++) {
        const int at = (share.lane + c * width) * LANES;
        if (at >= d) continue;
        float values[LANES], weights[LANES];
        unpack(rows[c], values);
        load_values<W, LANES, WIDE>(w, at, d, weights);
#pragma unroll
        for (int i = 0; i < LANES; i++) values[i] = values[i] * rstd * weights[i];
        store_values<T, LANES, WIDE>(y + start, at, d, values);
    }
}

template <class T, class W>
__device__ __forceinline__ void forward(const T *x, const T *residual, const W *w, T *sum, T *y, float *rstd_t, i64 t, int d,
                                        int width, float eps) {
    const bool wide = is_wide(x, d) && is_wide(residual, d) && is_wide(w, d) && is_wide(sum, d) && is_wide(y, d);
    if (wide) {
        forward_row<T, W, true>(x, residual, w, sum, y, rstd_t, t, d, width, eps);
    } else {
        forward_row<T, W, false>(x, residual, w, sum, y, rstd_t, t, d, width, eps);
    }
}

// With n = x*rstd: dx = rstd*(w*dy - n*mean(w*dy*n)) and dw = sum over rows of dy*n.
template <class T, class W, bool WIDE>
__device__ void backward_rows(const T *dy, const T *x, const W *w, const float *rstd_t, T *dx, float *partials, i64 t, int d,
                              int width, int accumulate) {
    constexpr int LANES = LANES_OF<T>;
    __shared__ float scratch[MAX_WARPS];
    const RowShare share = row_share(width);
    const i64 stride = (i64)gridDim.x * rows_per_block(width);
    float dw[MAX_CHUNKS][LANES] = {};
    uint4 next_dy[MAX_CHUNKS] = {}, next_x[MAX_CHUNKS] = {};
    float next_rstd = 0.0f;
    const auto fetch = [&](i64 row) {
        if (row >= t) return;
        next_rstd = rstd_t[row];
#pragma unroll
        for (int c = 0; c < MAX_CHUNKS; c++) {
            const int at = (share.lane + c * width) * LANES;
            if (at >= d) continue;
            next_dy[c] = load_chunk<T, WIDE>(dy + row * d, at, d);
            next_x[c] = load_chunk<T, WIDE>(x + row * d, at, d);
        }
    };
    fetch(share.row);
    // All threads of the block make the same number of turns: the sums are barriers.
    for (i64 first = (i64)blockIdx.x * rows_per_block(width); first < t; first += stride) {
        const i64 row = first + threadIdx.x / width;
        const bool active = row < t;
        uint4 row_dy[MAX_CHUNKS], row_x[MAX_CHUNKS];
        const float rstd = active ? next_rstd : 0.0f;
#pragma unroll
        for (int c = 0; c < MAX_CHUNKS; c++) {
            row_dy[c] = next_dy[c];
            row_x[c] = next_x[c];
        }
        fetch(row + stride);
        float pull = 0.0f;
#pragma unroll
        for (int c = 0; c < MAX_CHUNKS; c++) {
            const int at = (share.lane + c * width) * LANES;
            if (!active || at >= d) continue;
            float dys[LANES], xs[LANES], weights[LANES];
            unpack(row_dy[c], dys);
            unpack(row_x[c], xs);
            load_values<W, LANES, WIDE>(w, at, d, weights);
#pragma unroll
            for (int i = 0; i < LANES; i++) {
                const float product = dys[i] * xs[i];
                dw[c][i] += product * rstd;
                pull += product * weights[i];
            }
        }
        pull = row_sum(pull, width, scratch) / d * (rstd * rstd * rstd);
        if (!active) continue;
#pragma unroll
        for (int c = 0; c < MAX_CHUNKS; c++) {
            const int at = (share.lane + c * width) * LANES;
            if (at >= d) continue;
            float dys[LANES], xs[LANES], weights[LANES], out[LANES] = {};
            unpack(row_dy[c], dys);
            unpack(row_x[c], xs);
            load_values<W, LANES, WIDE>(w, at, d, weights);
            if (accumulate) unpack(load_chunk<T, WIDE>(dx + row * d, at, d), out);
#pragma unroll
            for (int i = 0; i < LANES; i++) out[i] += dys[i] * weights[i] * rstd - xs[i] * pull;
            store_values<T, LANES, WIDE>(dx + row * d, at, d, out);
        }
    }
    // The rows side by side in the block add up in their order; a row as wide as the block is alone.
    const int side_by_side = rows_per_block(width);
    float *block_dw = side_by_side > 1 ? (float *)dynamic_shared() : partials + (i64)blockIdx.x * d;
#pragma unroll
    for (int c = 0; c < MAX_CHUNKS; c++) {
#pragma unroll
        for (int i = 0; i < LANES; i++) {
            const int column = (share.lane + c * width) * LANES + i;
            if (column < d) block_dw[threadIdx.x / width * d + column] = dw[c][i];
        }
    }
    if (side_by_side == 1) return;
    __syncthreads();
    for (int column = threadIdx.x; column < d; column += blockDim.x) {
        float total = 0.0f;
        for (int i = 0; i < side_by_side; i++) total += block_dw[i * d + column];
        partials[(i64)blockIdx.x * d + column] = total;
    }
}

template <class T, class W>
__device__ __forceinline__ void backward(const T *dy, const T *x, const W *w, const float *rstd_t, T *dx, float *partials,
                                         i64 t, int d, int width, int accumulate) {
    const bool wide = is_wide(dy, d) && is_wide(x, d) && is_wide(w, d) && is_wide(dx, d);
    if (wide) {
        backward_rows<T, W, true>(dy, x, w, rstd_t, dx, partials, t, d, width, accumulate);
    } else {
        backward_rows<T, W, false>(dy, x, w, rstd_t, dx, partials, t, d, width, accumulate);
    }
}

// residual and sum are null where nothing is added first; otherwise sum = x + residual is what is normalised. sum may be
// x or residual.

extern "C" __global__ void __launch_bounds__(THREADS)
rms_norm_forward_f32(const float *x, const float *residual, const float *w, float *sum, float *y, float *rstd_t, i64 t,
                     int d, int width, float eps) {
    forward(x, residual, w, sum, y, rstd_t, t, d, width, eps);
}

extern "C" __global__ void __launch_bounds__(THREADS)
rms_norm_forward_bf16(const bf16 *x, const bf16 *residual, const bf16 *w, bf16 *sum, bf16 *y, float *rstd_t, i64 t, int d,
                      int width, float eps) {
    forward(x, residual, w, sum, y, rstd_t, t, d, width, eps);
}

extern "C" __global__ void __launch_bounds__(THREADS)
rms_norm_forward_bf16_weight_f32(const bf16 *x, const bf16 *residual, const float *w, bf16 *sum, bf16 *y, float *rstd_t,
                                 i64 t, int d, int width, float eps) {
    forward(x, residual, w, sum, y, rstd_t, t, d, width, eps);
}

// dx = gradient, or dx += gradient when `accumulate`.

extern "C" __global__ void __launch_bounds__(THREADS)
rms_norm_backward_f32(const float *dy, const float *x, const float *w, const float *rstd_t, float *dx, float *partials,
                      i64 t, int d, int width, int accumulate) {
    backward(dy, x, w, rstd_t, dx, partials, t, d, width, accumulate);
}

extern "C" __global__ void __launch_bounds__(THREADS)
rms_norm_backward_bf16(const bf16 *dy, const bf16 *x, const bf16 *w, const float *rstd_t, bf16 *dx, float *partials, i64 t,
                       int d, int width, int accumulate) {
    backward(dy, x, w, rstd_t, dx, partials, t, d, width, accumulate);
}

extern "C" __global__ void __launch_bounds__(THREADS)
rms_norm_backward_bf16_weight_f32(const bf16 *dy, const bf16 *x, const float *w, const float *rstd_t, bf16 *dx,
                                  float *partials, i64 t, int d, int width, int accumulate) {
    backward(dy, x, w, rstd_t, dx, partials, t, d, width, accumulate);
}
