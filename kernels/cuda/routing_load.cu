// The load of the experts over an optimizer step: counted, shared out for the load-balancing loss, and answered by the bias.
//
// Shapes: indices i32 [t, k]; tokens_per_expert i32 [e]; offsets i32 [e + 1]; entropy f32 [t]; load i32 [groups, e]; shares f32
// [groups, e]; tally i32 [2e + 2]: assignments per expert, assignments computed per expert, and an f64 in two elements, the
// sum of the entropies; bias f32 [e]. e is at most 1024.
// Launch: geometry::routing_group_load; the others a block of a thread an expert, routing_shares one for each group.
#include "counting_sort.cuh"

// The tally gains one micro-batch.
extern "C" __global__ void __launch_bounds__(MAX_THREADS)
routing_tally(const i32 *tokens_per_expert, const i32 *offsets_e, const float *entropy_t, i32 *tally, i64 t, int e) {
    __shared__ double scratch[MAX_WARPS];
    const int expert = threadIdx.x;
    double entropy = 0.0;
    for (i64 token = threadIdx.x; token < t; token += MAX_THREADS) entropy += entropy_t[token];
    entropy = block_sum(entropy, scratch);
    // 2e elements of four bytes end where an f64 may lie.
    if (expert == 0) *(double *)(tally + 2 * e) += entropy;
    if (expert >= e) return;
    tally[expert] += tokens_per_expert[expert];
    tally[e + expert] += offsets_e[expert + 1] - offsets_e[expert];
}

// load_ge: the assignments per expert of each group of `per_group` assignments, for a balance loss per sequence. A block a
// group.
extern "C" __global__ void __launch_bounds__(SORT_THREADS)
routing_group_load(const i32 *indices_tk, i32 *load_ge, i64 per_group, int e) {
    __shared__ i32 load[MAX_BINS];
    for (int expert = threadIdx.x; expert < e; expert += SORT_THREADS) load[expert] = 0;
    __syncthreads();
    for (i64 i = threadIdx.x; i < per_group; i += SORT_THREADS) {
        atomicAdd(&load[indices_tk[blockIdx.x * per_group + i]], 1);
    }
    __syncthreads();
    for (int expert = threadIdx.x; expert < e; expert += SORT_THREADS) load_ge[(i64)blockIdx.x * e + expert] = load[expert];
}

// Each group's load over its sum, zeros where that is zero. `earlier`, which may be null, is added to every group's load.
extern "C" __global__ void __launch_bounds__(MAX_THREADS)
routing_shares(const i32 *load_ge, const i32 *earlier_e, float *shares_ge, int e) {
    __shared__ double scratch[MAX_WARPS];
    const int expert = threadIdx.x;
    const i64 place = (i64)blockIdx.x * e + expert;
    double load = expert < e ? load_ge[place] : 0;
    if (expert < e && earlier_e) load += earlier_e[expert];
    const double total = block_sum(load, scratch);
    if (expert < e) shares_ge[place] = total > 0.0 ? float(load / total) : 0.0f;
}

// Moves each expert's bias by `rate` towards an even load: up below the mean, down above it. One block.
extern "C" __global__ void __launch_bounds__(MAX_THREADS)
routing_update_bias(float *bias_e, const i32 *load_e, int e, float rate) {
    __shared__ double scratch[MAX_WARPS];
    const int expert = threadIdx.x;
    const double load = expert < e ? load_e[expert] : 0;
    const double mean = block_sum(load, scratch) / e;
    if (expert >= e) return;
    if (load < mean) bias_e[expert] += rate;
    if (load > mean) bias_e[expert] -= rate;
}
