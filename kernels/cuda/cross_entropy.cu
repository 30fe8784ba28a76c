// Softmax cross-entropy of a chunk of logits: loss = ln(sum of e^x) - x[target], and the gradient in the logits' place.
//
// Shapes: logits [t, v], dlogits [t, v], targets i32 [t], losses f32 [t]. dlogits = grad_scale*(softmax - onehot(target));
// null for the loss alone. It may be the logits themselves where both have one type. A target of -1 is ignored: its loss
// and its row of dlogits are 0. Any other target outside the vocabulary has loss NaN and a gradient of NaN, so that the
// step is seen to be spoiled and left out.
// Launch: geometry::cross_entropy, one block a row.
// Bytes: a row is read from memory once and again from cache (f32 rows of 50k are 200 KB, bf16 half of that), and written
// once. The maximum and the sum are taken in one pass.
#include "common.cuh"

constexpr int THREADS = 512;
// Chunks whose loads are under way at once.
constexpr int BATCH = 4;

// What exponents are taken relative to: the maximum, or 0 where nothing but minus infinity was seen, which adds nothing.
__device__ __forceinline__ float base_of(float max) { return max == -infinity() ? 0.0f : max; }

// The maximum of what was seen and the sum of e^(x - maximum).
struct Softmax {
    float max, sum;

    __device__ __forceinline__ void add(Softmax other) {
        const float larger = fmaxf(max, other.max);
        const float base = base_of(larger);
        sum = sum * __expf(max - base) + other.sum * __expf(other.max - base);
        max = larger;
    }
};

template <class L, bool WIDE> __device__ __forceinline__ Softmax row_softmax(const L *logits, int v) {
    constexpr int LANES = LANES_OF<L>;
    __shared__ float maxima[MAX_WARPS], sums[MAX_WARPS];
    Softmax seen{-infinity(), 0.0f};
    constexpr int STEP = THREADS * LANES;
    for (int first = threadIdx.x * LANES; first < v; first += BATCH * STEP) {
        uint4 chunks[BATCH];
        load_batch<L, WIDE>(logits, first, STEP, v, chunks);
        Softmax batch{-infinity(), 0.0f};
        float values[BATCH][LANES];
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            unpack(chunks[b], values[b]);
#pragma unroll
            for (int i = 0; i < LANES; i++) {
                if (first + b * STEP + i >= v) values[b][i] = -infinity();
                batch.max = fmaxf(batch.max, values[b][i]);
            }
        }
        const float base = base_of(batch.max);
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
#pragma unroll
            for (int i = 0; i < LANES; i++) batch.sum += __expf(values[b][i] - base);
        }
        seen.add(batch);
    }
    const int warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;
#pragma unroll
    for (int flip = WARP_LANES / 2; flip > 0; flip /= 2) {
        seen.add(Softmax{__shfl_xor_sync(FULL_MASK, seen.max, flip), __shfl_xor_sync(FULL_MASK, seen.sum, flip)});
    }
    if (lane == 0) {
        maxima[warp] = seen.max;
        sums[warp] = seen.sum;
    }
    __syncthreads();
    seen = Softmax{maxima[0], sums[0]};
    for (int i = 1; i < THREADS / WARP_LANES; i++) seen.add(Softmax{maxima[i], sums[i]});
    return seen;
}

// dlogits of the row; not restrict, as they may lie where the logits do.
template <class L, class D, int LANES, bool WIDE>
__device__ __forceinline__ void row_gradient(const L *logits, D *dlogits, int v, int target, float max, float factor,
                                             float grad_scale) {
    constexpr int STEP = THREADS * LANES, TURNS = 2;
    for (int first = threadIdx.x * LANES; first < v; first += TURNS * STEP) {
        float values[TURNS][LANES] = {};
#pragma unroll
        for (int b = 0; b < TURNS; b++) {
            if (first + b * STEP < v) load_values<L, LANES, WIDE>(logits, first + b * STEP, v, values[b]);
        }
#pragma unroll
        for (int b = 0; b < TURNS; b++) {
            const int at = first + b * STEP;
            if (at >= v) continue;
#pragma unroll
            for (int i = 0; i < LANES; i++) {
                values[b][i] = __expf(values[b][i] - max) * factor - (at + i == target ? grad_scale : 0.0f);
            }
            store_values<D, LANES, WIDE>(dlogits, at, v, values[b]);
        }
    }
}

template <class L, class D, bool WIDE>
__device__ void row_loss(const L *logits, const i32 *targets_t, float *losses_t, D *dlogits, int v, float grad_scale) {
    // Whole accesses of 16 bytes of the narrower type.
    constexpr int LANES = LANES_OF<L> > LANES_OF<D> ? LANES_OF<L> : LANES_OF<D>;
    const i64 row = blockIdx.x;
    const L *x = logits + row * v;
    D *dx = dlogits + row * v;
    const int target = targets_t[row];
    if (target == -1) {
        if (threadIdx.x == 0) losses_t[row] = 0.0f;
        const float zeros[LANES] = {};
        for (int at = threadIdx.x * LANES; dlogits && at < v; at += THREADS * LANES) {
            store_values<D, LANES, WIDE>(dx, at, v, zeros);
        }
        return;
    }
    const bool known = target >= 0 && target < v;
    const Softmax softmax = row_softmax<L, WIDE>(x, v);
    if (threadIdx.x == 0) {
        const float loss = logf(softmax.sum) + (softmax.max - to_float(x[known ? target : 0]));
        losses_t[row] = known ? loss : __uint_as_float(0x7fffffffu);
    }
    if (!dlogits) return;
    // The target's logit is read before it is overwritten.
    __syncthreads();
    const float factor = known ? grad_scale / softmax.sum : __uint_as_float(0x7fffffffu);
    row_gradient<L, D, LANES, WIDE>(x, dx, v, target, softmax.max, factor, grad_scale);
}

template <class L, class D>
__device__ __forceinline__ void cross_entropy(const L *logits, const i32 *targets_t, float *losses_t, D *dlogits, int v,
                                              float grad_scale) {
    if (is_wide(logits, v) && is_wide(dlogits, v)) {
        row_loss<L, D, true>(logits, targets_t, losses_t, dlogits, v, grad_scale);
    } else {
        row_loss<L, D, false>(logits, targets_t, losses_t, dlogits, v, grad_scale);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
cross_entropy_f32(const float *logits, const i32 *targets_t, float *losses_t, float *dlogits, int v, float grad_scale) {
    cross_entropy(logits, targets_t, losses_t, dlogits, v, grad_scale);
}

// Logits in f32, their gradient in bf16 for the products that follow; dlogits must lie elsewhere.
extern "C" __global__ void __launch_bounds__(THREADS)
cross_entropy_f32_bf16(const float *logits, const i32 *targets_t, float *losses_t, bf16 *dlogits, int v, float grad_scale) {
    cross_entropy(logits, targets_t, losses_t, dlogits, v, grad_scale);
}

extern "C" __global__ void __launch_bounds__(THREADS)
cross_entropy_bf16(const bf16 *logits, const i32 *targets_t, float *losses_t, bf16 *dlogits, int v, float grad_scale) {
    cross_entropy(logits, targets_t, losses_t, dlogits, v, grad_scale);
}
