// Routing wholly on the device: scores, expert selection and weights, and the gradient of the logits. The plan that
// follows is routing_plan.cu.
//
// Shapes: logits, scores, dlogits f32 [t, e]; bias f32 [e]; indices i32 [t, k], best first; weights f32 [t, k]; lse,
// entropy, terms f32 [t]; shares f32 [groups, e], the share of a group's assignments that each expert has; losses f32 [2].
// e is at most 1024, k at most 32.
// s = softmax(x) or sigmoid(x); the top k by s + bias, ties to the lower index, NaN after every number; w = scale*s, or
// scale*s / sum of the chosen s when renormalised. NaN in a row stays in that row.
// Launch: geometry::router, a warp a token, its scores in registers.
// Bytes: forward reads logits and writes scores; backward reads scores (and logits for the z-loss) and writes dlogits.
#include "common.cuh"

constexpr int ROUTER_THREADS = 256;
constexpr int TOKENS_PER_BLOCK = ROUTER_THREADS / WARP_LANES;
// Added to a sum of sigmoid scores before division, which may be 0.
constexpr float EPSILON = 1e-7f;

enum Flags { SIGMOID = 1, RENORMALISE = 2 };

__device__ __forceinline__ i64 warp_token() { return (i64)blockIdx.x * TOKENS_PER_BLOCK + threadIdx.x / WARP_LANES; }

// Rises with the value; NaN is below every number and 1, so that 0 stands for an expert that is taken or is none.
__device__ __forceinline__ u32 rank_key(float value) {
    if (value != value) return 1;
    // There is no -0: a score is 0 or more, and a sum is -0 only where both terms are.
    const u32 bits = __float_as_uint(value);
    // Negative floats rise as their bits fall; the sign bit then lifts the positive ones above them.
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// e^x and the like in full precision: the router's scores decide, and a warp a token is bound by its loads anyway.
template <int PER_LANE>
__device__ void route_token(const float *logits_te, const float *bias_e, float *scores_te, i32 *indices_tk, float *weights_tk,
                            float *lse_t, float *entropy_t, i64 token, int e, int k, int flags, float scale) {
    const int lane = threadIdx.x % WARP_LANES;
    float scores[PER_LANE];
    float max = -infinity();
#pragma unroll
    for (int j = 0; j < PER_LANE; j++) {
        const int expert = lane + j * WARP_LANES;
        scores[j] = expert < e ? logits_te[token * e + expert] : -infinity();
        max = fmaxf(max, scores[j]);
    }
    max = lanes_max(max);
    if (lse_t || !(flags & SIGMOID)) {
        float exponentials[PER_LANE], sum = 0.0f;
#pragma unroll
        for (int j = 0; j < PER_LANE; j++) {
            exponentials[j] = lane + j * WARP_LANES < e ? expf(scores[j] - max) : 0.0f;
            sum += exponentials[j];
        }
        sum = lanes_sum(sum);
        if (lse_t && lane == 0) lse_t[token] = max + logf(sum);
#pragma unroll
        for (int j = 0; j < PER_LANE; j++) {
            if (!(flags & SIGMOID)) scores[j] = exponentials[j] / sum;
        }
    }
    u32 keys[PER_LANE];
    float total = 0.0f;
#pragma unroll
    for (int j = 0; j < PER_LANE; j++) {
        const int expert = lane + j * WARP_LANES;
        if (flags & SIGMOID) scores[j] = 1.0f / (1.0f + expf(-scores[j]));
        keys[j] = 0;
        if (expert >= e) continue;
        scores_te[token * e + expert] = scores[j];
        keys[j] = rank_key(scores[j] + (bias_e ? bias_e[expert] : 0.0f));
        total += scores[j];
    }
    if (entropy_t) {
        total = lanes_sum(total);
        float entropy = 0.0f;
#pragma unroll
        for (int j = 0; j < PER_LANE; j++) {
            const float p = lane + j * WARP_LANES < e ? scores[j] / total : 0.0f;
            if (p != 0.0f) entropy -= p * logf(p);
        }
        entropy = lanes_sum(entropy);
        if (lane == 0) entropy_t[token] = entropy;
    }
    // The i-th choice ends up in lane i.
    i32 index = 0;
    float weight = 0.0f, chosen_sum = 0.0f;
    for (int i = 0; i < k; i++) {
        u32 best = 0;
        int best_j = 0;
        float best_score = 0.0f;
#pragma unroll
        for (int j = 0; j < PER_LANE; j++) {
            if (keys[j] > best) {
                best = keys[j];
                best_j = j;
                best_score = scores[j];
            }
        }
        const u32 winning = __reduce_max_sync(FULL_MASK, best);
        const u32 candidate = best == winning ? u32(lane + best_j * WARP_LANES) : 0xffffffffu;
        const int expert = int(__reduce_min_sync(FULL_MASK, candidate));
        const float score = __shfl_sync(FULL_MASK, best_score, expert % WARP_LANES);
#pragma unroll
        for (int j = 0; j < PER_LANE; j++) {
            if (lane + j * WARP_LANES == expert) keys[j] = 0;
        }
        chosen_sum += score;
        if (lane == i) {
            index = expert;
            weight = score;
        }
    }
    const float divisor = !(flags & RENORMALISE) ? 1.0f : flags & SIGMOID ? chosen_sum + EPSILON : chosen_sum;
    if (lane < k) {
        indices_tk[token * k + lane] = index;
        weights_tk[token * k + lane] = weight / divisor * scale;
    }
}

// bias, lse and entropy may be null. One kernel for each number of experts up to which it serves: registers decide how
// many tokens are under way.

extern "C" __global__ void __launch_bounds__(ROUTER_THREADS, 4)
router_forward_64(const float *logits_te, const float *bias_e, float *scores_te, i32 *indices_tk, float *weights_tk,
                  float *lse_t, float *entropy_t, i64 t, int e, int k, int flags, float scale) {
    const i64 token = warp_token();
    if (token >= t) return;
    route_token<2>(logits_te, bias_e, scores_te, indices_tk, weights_tk, lse_t, entropy_t, token, e, k, flags, scale);
}

extern "C" __global__ void __launch_bounds__(ROUTER_THREADS, 4)
router_forward_256(const float *logits_te, const float *bias_e, float *scores_te, i32 *indices_tk, float *weights_tk,
                   float *lse_t, float *entropy_t, i64 t, int e, int k, int flags, float scale) {
    const i64 token = warp_token();
    if (token >= t) return;
    route_token<8>(logits_te, bias_e, scores_te, indices_tk, weights_tk, lse_t, entropy_t, token, e, k, flags, scale);
}

extern "C" __global__ void __launch_bounds__(ROUTER_THREADS, 1)
router_forward_1024(const float *logits_te, const float *bias_e, float *scores_te, i32 *indices_tk, float *weights_tk,
                    float *lse_t, float *entropy_t, i64 t, int e, int k, int flags, float scale) {
    const i64 token = warp_token();
    if (token >= t) return;
    route_token<32>(logits_te, bias_e, scores_te, indices_tk, weights_tk, lse_t, entropy_t, token, e, k, flags, scale);
}

// What the load-balancing loss and the z-loss add to a token's gradient.
struct Losses {
    // Of the token's group; null without a balance loss.
    const float *shares_e;
    // Coefficient * experts / tokens.
    float balance_scale;
    // Null without a z-loss.
    const float *logits_te;
    const float *lse_t;
    // 2 * coefficient / tokens.
    float z_scale;
};

template <int PER_LANE>
__device__ void token_gradient(const float *dweights_r, const i32 *token_to_rows_tk, const float *scores_te,
                               const i32 *indices_tk, const Losses &losses, float *dlogits_te, i64 token, int e, int k,
                               int flags, float scale) {
    const int lane = threadIdx.x % WARP_LANES;
    float scores[PER_LANE], dscores[PER_LANE];
    float total = 0.0f, pull = 0.0f;
#pragma unroll
    for (int j = 0; j < PER_LANE; j++) {
        const int expert = lane + j * WARP_LANES;
        scores[j] = expert < e ? scores_te[token * e + expert] : 0.0f;
        dscores[j] = expert < e && losses.shares_e ? losses.shares_e[expert] : 0.0f;
        total += scores[j];
        pull += scores[j] * dscores[j];
    }
    if (losses.shares_e) {
        // The derivative of p = s / (sum + epsilon): each p falls as another s grows. A softmax carries that in its own.
        const float normaliser = flags & SIGMOID ? 1.0f / (lanes_sum(total) + EPSILON) : 1.0f;
        pull = flags & SIGMOID ? lanes_sum(pull) * normaliser : 0.0f;
#pragma unroll
        for (int j = 0; j < PER_LANE; j++) dscores[j] = losses.balance_scale * normaliser * (dscores[j] - pull);
    }
    // Lane i holds the i-th choice.
    i32 index = 0;
    float dweight = 0.0f, chosen = 0.0f;
    if (lane < k) {
        index = indices_tk[token * k + lane];
        chosen = scores_te[token * e + index];
        const i32 row = token_to_rows_tk[token * k + lane];
        dweight = row >= 0 ? dweights_r[row] : 0.0f;
    }
    float divisor = 1.0f, mean = 0.0f;
    if (flags & RENORMALISE) {
        divisor = lanes_sum(chosen) + (flags & SIGMOID ? EPSILON : 0.0f);
        mean = lanes_sum(dweight * chosen) / divisor;
    }
    dweight = scale / divisor * (dweight - mean);
    for (int i = 0; i < k; i++) {
        const int expert = __shfl_sync(FULL_MASK, index, i);
        const float dchosen = __shfl_sync(FULL_MASK, dweight, i);
#pragma unroll
        for (int j = 0; j < PER_LANE; j++) {
            if (lane + j * WARP_LANES == expert) dscores[j] += dchosen;
        }
    }
    float dot = 0.0f;
#pragma unroll
    for (int j = 0; j < PER_LANE; j++) dot += dscores[j] * scores[j];
    dot = lanes_sum(dot);
    const float lse = losses.lse_t ? losses.lse_t[token] : 0.0f;
#pragma unroll
    for (int j = 0; j < PER_LANE; j++) {
        const int expert = lane + j * WARP_LANES;
        if (expert >= e) continue;
        float dlogit = flags & SIGMOID ? dscores[j] * scores[j] * (1.0f - scores[j]) : scores[j] * (dscores[j] - dot);
        if (losses.lse_t) dlogit += losses.z_scale * lse * expf(losses.logits_te[token * e + expert] - lse);
        dlogits_te[token * e + expert] = dlogit;
    }
}

// dweights comes in the order of the experts' rows; an assignment without a row has gradient 0. Token n is of group
// n * groups / t. shares, and lse with logits, may be null.

extern "C" __global__ void __launch_bounds__(ROUTER_THREADS, 4)
router_backward_64(const float *dweights_r, const i32 *token_to_rows_tk, const float *scores_te, const i32 *indices_tk,
                   const float *shares_ge, const float *logits_te, const float *lse_t, float *dlogits_te, i64 t, int e,
                   int k, int groups, int flags, float scale, float balance_scale, float z_scale) {
    const i64 token = warp_token();
    if (token >= t) return;
    const float *shares_e = shares_ge ? shares_ge + token * groups / t * e : nullptr;
    const Losses losses{shares_e, balance_scale, logits_te, lse_t, z_scale};
    token_gradient<2>(dweights_r, token_to_rows_tk, scores_te, indices_tk, losses, dlogits_te, token, e, k, flags, scale);
}

extern "C" __global__ void __launch_bounds__(ROUTER_THREADS, 4)
router_backward_256(const float *dweights_r, const i32 *token_to_rows_tk, const float *scores_te, const i32 *indices_tk,
                    const float *shares_ge, const float *logits_te, const float *lse_t, float *dlogits_te, i64 t, int e,
                    int k, int groups, int flags, float scale, float balance_scale, float z_scale) {
    const i64 token = warp_token();
    if (token >= t) return;
    const float *shares_e = shares_ge ? shares_ge + token * groups / t * e : nullptr;
    const Losses losses{shares_e, balance_scale, logits_te, lse_t, z_scale};
    token_gradient<8>(dweights_r, token_to_rows_tk, scores_te, indices_tk, losses, dlogits_te, token, e, k, flags, scale);
}

extern "C" __global__ void __launch_bounds__(ROUTER_THREADS, 1)
router_backward_1024(const float *dweights_r, const i32 *token_to_rows_tk, const float *scores_te, const i32 *indices_tk,
                     const float *shares_ge, const float *logits_te, const float *lse_t, float *dlogits_te, i64 t, int e,
                     int k, int groups, int flags, float scale, float balance_scale, float z_scale) {
    const i64 token = warp_token();
    if (token >= t) return;
    const float *shares_e = shares_ge ? shares_ge + token * groups / t * e : nullptr;
    const Losses losses{shares_e, balance_scale, logits_te, lse_t, z_scale};
    token_gradient<32>(dweights_r, token_to_rows_tk, scores_te, indices_tk, losses, dlogits_te, token, e, k, flags, scale);
}

// terms_t = sum over experts of share * probability.
extern "C" __global__ void __launch_bounds__(ROUTER_THREADS)
router_balance_terms(const float *scores_te, const float *shares_ge, float *terms_t, i64 t, int e, int groups, int flags) {
    const int lane = threadIdx.x % WARP_LANES;
    const i64 token = warp_token();
    if (token >= t) return;
    const float *shares_e = shares_ge + token * groups / t * e;
    float term = 0.0f, total = 0.0f;
    for (int expert = lane; expert < e; expert += WARP_LANES) {
        const float score = scores_te[token * e + expert];
        total += score;
        term += score * shares_e[expert];
    }
    term = lanes_sum(term);
    total = lanes_sum(total);
    if (lane == 0) terms_t[token] = flags & SIGMOID ? term / (total + EPSILON) : term;
}

// losses = the load-balancing loss and the z-loss: balance_scale * sum of terms, z_scale * sum of lse^2. A loss whose values
// are null is 0. One block.
extern "C" __global__ void __launch_bounds__(MAX_THREADS)
router_losses(const float *terms_t, const float *lse_t, float *losses, i64 t, float balance_scale, float z_scale) {
    __shared__ double scratch[MAX_WARPS];
    double balance = 0.0, z = 0.0;
    for (i64 token = threadIdx.x; token < t; token += MAX_THREADS) {
        if (terms_t) balance += terms_t[token];
        if (lse_t) z += double(lse_t[token]) * lse_t[token];
    }
    balance = block_sum(balance, scratch);
    z = block_sum(z, scratch);
    if (threadIdx.x > 0) return;
    losses[0] = terms_t ? float(balance_scale * balance) : 0.0f;
    losses[1] = lse_t ? float(z_scale * z) : 0.0f;
}
