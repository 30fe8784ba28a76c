// delta_bht = Σ_d do∘o, f32: what the softmax's gradient takes off each dp in the backward of attention.
//
// Shapes: do_bthd, o_bthd bf16, d a multiple of 8. Grid ⌈b·t·h/64⌉, 256 threads, no shared memory, some 32 registers. Four
// lanes a row. Napkin: moves 4·b·t·h·d bytes, memory-bound.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256)
    attention_delta(float *delta, const bf16 *d_out, const bf16 *o, int batch, int num_queries, int num_heads,
                    int head_dim) {
    i64 row = i64(blockIdx.x) * 64 + threadIdx.x / 4;
    bool valid = row < i64(batch) * num_queries * num_heads;
    float sum = 0.0f;
    for (int at = threadIdx.x % 4 * 8; valid && at < head_dim; at += 32) {
        float x[8], y[8];
        unpack(load_16_bytes(d_out + row * head_dim + at), x);
        unpack(load_16_bytes(o + row * head_dim + at), y);
#pragma unroll
        for (int i = 0; i < 8; i++) sum += x[i] * y[i];
    }
    sum = lanes_sum(sum, 4);
    i64 head = row % num_heads, query = row / num_heads % num_queries, b = row / num_heads / num_queries;
    if (valid && threadIdx.x % 4 == 0) delta[(b * num_heads + head) * num_queries + query] = sum;
}
