// The forward of attention: see attention.cuh for shapes, launches and masks.
#pragma once

#include "attention.cuh"

namespace {

constexpr int FORWARD_THREADS = 128;

// A warp holds 32 queries, in two pieces of 16 rows: each fragment of keys and values is used twice.
template <int D, int KEYS>
__device__ __forceinline__ void forward(bf16 *o, float *lse, const bf16 *q, const bf16 *k, const bf16 *v,
                                        const Sizes &sizes) {
    constexpr int PIECES = 2;
    const Visible visible(sizes);
    const int head = blockIdx.y, batch = blockIdx.z, warp = threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    const int kv_head = head / (sizes.num_heads / sizes.num_kv_heads);
    // With a causal mask the last tiles have most to do: they start first.
    const int first = (gridDim.x - 1 - blockIdx.x) * ROWS;
    const int last = min(first + ROWS, sizes.num_queries) - 1;
    const int q0 = sizes.query_start + first, q1 = sizes.query_start + last;
    const int q_stride = sizes.num_heads * D, k_stride = sizes.num_kv_heads * D;
    const i64 q_head = i64(batch) * sizes.num_queries * q_stride + head * D;
    const i64 k_head = i64(batch) * sizes.num_keys * k_stride + kv_head * D;

    const SharedAddress shared_q = shared_address(dynamic_shared());
    const SharedAddress shared_k = shared_q + ROWS * D * 2, shared_v = shared_k + KEYS * D * 2;

    auto next_visible = [&](int key) {
        while (key < sizes.num_keys && visible.none(q0, q1, key, min(key + KEYS, sizes.num_keys) - 1)) key += KEYS;
        return key;
    };

    float sums[PIECES][D / 8][4];
    float max_of[PIECES][2], sum_of[PIECES][2];
#pragma unroll
    for (int m = 0; m < PIECES; m++) {
        clear(sums[m]);
        max_of[m][0] = max_of[m][1] = -infinity();
        sum_of[m][0] = sum_of[m][1] = 0.0f;
    }

    int key = next_visible(0);
    copy_rows<ROWS, D, FORWARD_THREADS>(shared_q, q + q_head, q_stride, first, sizes.num_queries);
    if (key < sizes.num_keys) copy_rows<KEYS, D, FORWARD_THREADS>(shared_k, k + k_head, k_stride, key, sizes.num_keys);
    commit_copies();
    while (key < sizes.num_keys) {
        // With D = 128 the sums leave no room for addresses computed in front of the loop.
        lane = opaque(lane);
        wait_copies<0>();
        // The keys are here, and everybody is done with the values before.
        __syncthreads();
        copy_rows<KEYS, D, FORWARD_THREADS>(shared_v, v + k_head, k_stride, key, sizes.num_keys);
        commit_copies();

        float p[PIECES][KEYS / 8][4];
#pragma unroll
        for (int m = 0; m < PIECES; m++) clear(p[m]);
#pragma unroll
        for (int step = 0; step < D / 16; step++) {
            Fragment4 left[PIECES];
#pragma unroll
            for (int m = 0; m < PIECES; m++) {
                left[m] = ldmatrix(shared_q + swizzled<D / 8>(warp * 32 + m * 16 + lane % 16, step * 2 + lane / 16));
            }
#pragma unroll
            for (int n = 0; n < KEYS / 16; n++) {
                Fragment4 right =
                    ldmatrix(shared_k + swizzled<D / 8>(n * 16 + lane % 8 + lane / 16 * 8, step * 2 + lane / 8 % 2));
#pragma unroll
                for (int m = 0; m < PIECES; m++) {
                    mma_bf16(p[m][2 * n], left[m], right.word[0], right.word[1]);
                    mma_bf16(p[m][2 * n + 1], left[m], right.word[2], right.word[3]);
                }
            }
        }
        wait_copies<0>();
        // The values are here, and everybody is done with the keys.
        __syncthreads();
        int next = next_visible(key + KEYS);
        if (next < sizes.num_keys) {
            copy_rows<KEYS, D, FORWARD_THREADS>(shared_k, k + k_head, k_stride, next, sizes.num_keys);
        }
        commit_copies();

        const float factor = sizes.scale * LOG2_E;
#pragma unroll
        for (int m = 0; m < PIECES; m++) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) p[m][n][i] *= factor;
            }
        }
        bool whole = key + KEYS <= sizes.num_keys && visible.all(q0, q1, key, key + KEYS - 1);
        if (!whole) {
#pragma unroll
            for (int m = 0; m < PIECES; m++) {
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        int query = q0 + warp * 32 + m * 16 + i / 2 * 8 + lane / 4;
                        int at = key + n * 8 + lane % 4 * 2 + i % 2;
                        p[m][n][i] = (at < sizes.num_keys) & visible.sees(query, at) ? p[m][n][i] : -infinity();
                    }
                }
            }
        }
#pragma unroll
        for (int m = 0; m < PIECES; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float highest = -infinity();
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                    for (int i = 0; i < 2; i++) highest = fmaxf(highest, p[m][n][half * 2 + i]);
                }
                highest = fmaxf(max_of[m][half], lanes_max(highest, 4));
                // A row that has seen no key yet subtracts 0 in place of -inf.
                float base = highest == -infinity() ? 0.0f : highest;
                float correction = exp2_fast(max_of[m][half] - base), sum = 0.0f;
                max_of[m][half] = highest;
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        float &x = p[m][n][half * 2 + i];
                        x = exp2_fast(x - base);
                        sum += x;
                    }
                }
                sum_of[m][half] = sum_of[m][half] * correction + sum;
#pragma unroll
                for (int d = 0; d < D / 8; d++) {
                    sums[m][d][half * 2] *= correction;
                    sums[m][d][half * 2 + 1] *= correction;
                }
            }
        }
#pragma unroll
        for (int step = 0; step < KEYS / 16; step++) {
            Fragment4 left[PIECES];
#pragma unroll
            for (int m = 0; m < PIECES; m++) left[m] = as_left(p[m][2 * step], p[m][2 * step + 1]);
#pragma unroll
            for (int d = 0; d < D / 16; d++) {
                Fragment4 right = rows_as_right<D>(shared_v, lane, step * 16, d * 16);
#pragma unroll
                for (int m = 0; m < PIECES; m++) {
                    mma_bf16(sums[m][2 * d], left[m], right.word[0], right.word[1]);
                    mma_bf16(sums[m][2 * d + 1], left[m], right.word[2], right.word[3]);
                }
            }
        }
        key = next;
    }
    wait_copies<0>();

#pragma unroll
    for (int m = 0; m < PIECES; m++) {
        int row = first + warp * 32 + m * 16;
        float factors[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = lanes_sum(sum_of[m][half], 4);
            factors[half] = sum > 0.0f ? 1.0f / sum : 0.0f;
            int at = row + half * 8 + lane / 4;
            if (lane % 4 == 0 && at <= last) {
                lse[(i64(batch) * sizes.num_heads + head) * sizes.num_queries + at] =
                    sum > 0.0f ? (max_of[m][half] + log2f(sum)) * LN_2 : -infinity();
            }
        }
        store_rows<D>(o + q_head, q_stride, sums[m], row, last + 1, factors[0], factors[1]);
    }
}

} // namespace
