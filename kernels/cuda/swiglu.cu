// SwiGLU with the routing weight folded in: h = silu(gate)*up*weight.
//
// Shapes: gate_up, dgate_up [r, 2f], gate in the first half of a row and up in the second; h, dh [r, f]; weights,
// dweights f32 [r], null without routing (a weight of one).
// With s = sigmoid(gate): dgate = dh*weight*up*(s + gate*s*(1 - s)), dup = dh*weight*gate*s, dweight = sum of dh*gate*s*up.
// Launch: geometry::swiglu; `width` threads a row.
// Bytes: forward 3*r*f elements, backward 5*r*f, each once.
#include "common.cuh"

constexpr int SWIGLU_THREADS = 256;
// Chunks of each operand whose loads are under way at once.
constexpr int BATCH = 2;

template <class T, bool WIDE>
__device__ void forward_row(const T *__restrict__ gate_up, const float *__restrict__ weights_r, T *__restrict__ h, i64 r,
                            int f, int width) {
    constexpr int LANES = LANES_OF<T>;
    const RowShare share = row_share(width);
    if (share.row >= r) return;
    const T *gate = gate_up + share.row * 2 * f;
    const float weight = weights_r ? weights_r[share.row] : 1.0f;
    const int step = width * LANES;
    for (int first = share.lane * LANES; first < f; first += BATCH * step) {
        uint4 gate_chunks[BATCH], up_chunks[BATCH];
        load_batch<T, WIDE>(gate, first, step, f, gate_chunks);
        load_batch<T, WIDE>(gate + f, first, step, f, up_chunks);
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            const int at = first + b * step;
            if (at >= f) continue;
            float gates[LANES], ups[LANES];
            unpack(gate_chunks[b], gates);
            unpack(up_chunks[b], ups);
#pragma unroll
            for (int i = 0; i < LANES; i++) ups[i] *= gates[i] * sigmoid(gates[i]) * weight;
            store_values<T, LANES, WIDE>(h + share.row * f, at, f, ups);
        }
    }
}

template <class T, bool WIDE>
__device__ void backward_row(const T *__restrict__ dh, const T *__restrict__ gate_up, const float *__restrict__ weights_r,
                             T *__restrict__ dgate_up, float *__restrict__ dweights_r, i64 r, int f, int width) {
    constexpr int LANES = LANES_OF<T>;
    __shared__ float scratch[MAX_WARPS];
    const RowShare share = row_share(width);
    const bool active = share.row < r;
    const i64 start = share.row * 2 * f;
    const float weight = weights_r && active ? weights_r[share.row] : 1.0f;
    float dweight = 0.0f;
    const int step = width * LANES;
    for (int first = share.lane * LANES; active && first < f; first += BATCH * step) {
        uint4 dh_chunks[BATCH], gate_chunks[BATCH], up_chunks[BATCH];
        load_batch<T, WIDE>(dh + share.row * f, first, step, f, dh_chunks);
        load_batch<T, WIDE>(gate_up + start, first, step, f, gate_chunks);
        load_batch<T, WIDE>(gate_up + start + f, first, step, f, up_chunks);
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            const int at = first + b * step;
            if (at >= f) continue;
            float gates[LANES], ups[LANES], dhs[LANES], dgates[LANES];
            unpack(dh_chunks[b], dhs);
            unpack(gate_chunks[b], gates);
            unpack(up_chunks[b], ups);
#pragma unroll
            for (int i = 0; i < LANES; i++) {
                const float s = sigmoid(gates[i]), silu = gates[i] * s;
                dweight += dhs[i] * silu * ups[i];
                const float scaled = dhs[i] * weight;
                dgates[i] = scaled * ups[i] * (s + silu * (1.0f - s));
                ups[i] = scaled * silu;
            }
            store_values<T, LANES, WIDE>(dgate_up + start, at, f, dgates);
            store_values<T, LANES, WIDE>(dgate_up + start + f, at, f, ups);
        }
    }
    if (!dweights_r) return;
    dweight = row_sum(dweight, width, scratch);
    if (active && share.lane == 0) dweights_r[share.row] = dweight;
}

template <class T>
__device__ __forceinline__ void forward(const T *gate_up, const float *weights_r, T *h, i64 r, int f, int width) {
    if (is_wide(gate_up, f) && is_wide(h, f)) {
        forward_row<T, true>(gate_up, weights_r, h, r, f, width);
    } else {
        forward_row<T, false>(gate_up, weights_r, h, r, f, width);
    }
}

template <class T>
__device__ __forceinline__ void backward(const T *dh, const T *gate_up, const float *weights_r, T *dgate_up, float *dweights_r,
                                         i64 r, int f, int width) {
    if (is_wide(dh, f) && is_wide(gate_up, f) && is_wide(dgate_up, f)) {
        backward_row<T, true>(dh, gate_up, weights_r, dgate_up, dweights_r, r, f, width);
    } else {
        backward_row<T, false>(dh, gate_up, weights_r, dgate_up, dweights_r, r, f, width);
    }
}

extern "C" __global__ void __launch_bounds__(SWIGLU_THREADS)
swiglu_forward_f32(const float *gate_up, const float *weights_r, float *h, i64 r, int f, int width) {
    forward(gate_up, weights_r, h, r, f, width);
}

extern "C" __global__ void __launch_bounds__(SWIGLU_THREADS)
swiglu_forward_bf16(const bf16 *gate_up, const float *weights_r, bf16 *h, i64 r, int f, int width) {
    forward(gate_up, weights_r, h, r, f, width);
}

extern "C" __global__ void __launch_bounds__(SWIGLU_THREADS, 3)
swiglu_backward_f32(const float *dh, const float *gate_up, const float *weights_r, float *dgate_up, float *dweights_r, i64 r,
                    int f, int width) {
    backward(dh, gate_up, weights_r, dgate_up, dweights_r, r, f, width);
}

extern "C" __global__ void __launch_bounds__(SWIGLU_THREADS, 3)
swiglu_backward_bf16(const bf16 *dh, const bf16 *gate_up, const float *weights_r, bf16 *dgate_up, float *dweights_r, i64 r,
                     int f, int width) {
    backward(dh, gate_up, weights_r, dgate_up, dweights_r, r, f, width);
}
