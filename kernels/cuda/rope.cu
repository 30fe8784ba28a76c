// Rotary position embedding, half-split: the pair (i, i + half) of each head turns by an angle of its token's position.
//
// Shapes: x [tokens, heads, head_dim] in place, tokens = batch * sequence; cos, sin f32 [positions, half], 2*half <= head_dim;
// elements from 2*half on stay. Token n stands at position start + n % sequence. `back` turns the other way: the backward.
// Launch: geometry::rope; a thread turns one chunk of pairs of a token in every head, so that its angles are read once.
// Bytes: x read and written, the table once a token.
#include "common.cuh"

constexpr int ROPE_THREADS = 256;
// Heads whose loads are under way at once.
constexpr int BATCH = 4;

template <class T, bool WIDE>
__device__ void rotate(T *x, const float *cos, const float *sin, i64 tokens, int sequence, int start, int heads, int head_dim,
                       int half, int back) {
    constexpr int LANES = LANES_OF<T>;
    const u32 chunks = (half + LANES - 1) / LANES;
    // Fewer than 2^32 threads: x would not fit a device otherwise.
    const u32 thread = blockIdx.x * ROPE_THREADS + threadIdx.x;
    const u32 token = thread / chunks;
    const int at = int(thread % chunks) * LANES;
    if (token >= tokens) return;
    const i64 angles = (i64)(start + token % sequence) * half;
    float cosines[LANES], sines[LANES];
    load_values<float, LANES, WIDE>(cos + angles, at, half, cosines);
    load_values<float, LANES, WIDE>(sin + angles, at, half, sines);
    T *head = x + (i64)token * heads * head_dim;
    for (int h = 0; h < heads; h += BATCH, head += BATCH * head_dim) {
        uint4 first_chunks[BATCH] = {}, second_chunks[BATCH] = {};
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            if (h + b >= heads) continue;
            first_chunks[b] = load_chunk<T, WIDE>(head + b * head_dim, at, half);
            second_chunks[b] = load_chunk<T, WIDE>(head + b * head_dim + half, at, half);
        }
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            if (h + b >= heads) continue;
            float first[LANES], second[LANES], turned[LANES];
            unpack(first_chunks[b], first);
            unpack(second_chunks[b], second);
#pragma unroll
            for (int i = 0; i < LANES; i++) {
                const float sine = back ? -sines[i] : sines[i];
                turned[i] = first[i] * cosines[i] - second[i] * sine;
                second[i] = second[i] * cosines[i] + first[i] * sine;
            }
            store_values<T, LANES, WIDE>(head + b * head_dim, at, half, turned);
            store_values<T, LANES, WIDE>(head + b * head_dim + half, at, half, second);
        }
    }
}

template <class T>
__device__ __forceinline__ void rope(T *x, const float *cos, const float *sin, i64 tokens, int sequence, int start, int heads,
                                     int head_dim, int half, int back) {
    if (is_wide(x, head_dim) && half % LANES_OF<T> == 0 && is_wide(cos, half) && is_wide(sin, half)) {
        rotate<T, true>(x, cos, sin, tokens, sequence, start, heads, head_dim, half, back);
    } else {
        rotate<T, false>(x, cos, sin, tokens, sequence, start, heads, head_dim, half, back);
    }
}

extern "C" __global__ void __launch_bounds__(ROPE_THREADS)
rope_f32(float *x, const float *cos, const float *sin, i64 tokens, int sequence, int start, int heads, int head_dim, int half,
         int back) {
    rope(x, cos, sin, tokens, sequence, start, heads, head_dim, half, back);
}

extern "C" __global__ void __launch_bounds__(ROPE_THREADS)
rope_bf16(bf16 *x, const float *cos, const float *sin, i64 tokens, int sequence, int start, int heads, int head_dim, int half,
          int back) {
    rope(x, cos, sin, tokens, sequence, start, heads, head_dim, half, back);
}
