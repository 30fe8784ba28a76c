// Attention with heads of 96: see attention.cuh.
// Shared bytes: forward 36864 (KEYS = 32), backward_queries 99328 (S = 64), backward_keys 99328 (S = 64).
#include "attention_backward.cuh"
#include "attention_forward.cuh"

extern "C" __global__ void __launch_bounds__(FORWARD_THREADS, 2)
    attention_forward_96(bf16 *o, float *lse, const bf16 *q, const bf16 *k, const bf16 *v, int num_queries, int num_keys,
                         int num_heads, int num_kv_heads, int query_start, float scale, int causal, int window,
                         int num_global) {
    const Sizes sizes{num_queries, num_keys, num_heads, num_kv_heads, query_start, scale, causal, window, num_global};
    forward<96, 32>(o, lse, q, k, v, sizes);
}

extern "C" __global__ void __launch_bounds__(BACKWARD_THREADS, 1)
    attention_backward_queries_96(bf16 *dq, const bf16 *d_out, const bf16 *q, const bf16 *k, const bf16 *v,
                                  const float *lse, const float *delta, int num_queries, int num_keys, int num_heads,
                                  int num_kv_heads, int query_start, float scale, int causal, int window,
                                  int num_global) {
    const Sizes sizes{num_queries, num_keys, num_heads, num_kv_heads, query_start, scale, causal, window, num_global};
    backward<96, 64, false>(dq, nullptr, d_out, q, k, v, lse, delta, sizes);
}

extern "C" __global__ void __launch_bounds__(BACKWARD_THREADS, 1)
    attention_backward_keys_96(bf16 *dk, bf16 *dv, const bf16 *d_out, const bf16 *q, const bf16 *k, const bf16 *v,
                               const float *lse, const float *delta, int num_queries, int num_keys, int num_heads,
                               int num_kv_heads, int query_start, float scale, int causal, int window, int num_global) {
    const Sizes sizes{num_queries, num_keys, num_heads, num_kv_heads, query_start, scale, causal, window, num_global};
    backward<96, 64, true>(dk, dv, d_out, q, k, v, lse, delta, sizes);
}
