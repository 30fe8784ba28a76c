// AdamW over all parameters in one pass, with the gradient's norm and its clipping decided on the device.
//
// With g = grad*grad_scale at update n: m = b1*m + (1 - b1)*g; v = b2*v + (1 - b2)*g^2;
// w = w*(1 - lr*decay) - lr*m^ / (sqrt(v^) + eps) with m^ = m / (1 - b1^n) and v^ = v / (1 - b2^n).
// Shapes: `parameters`, one entry a tensor, and `tiles`, one entry for each TILE elements of a tensor: both are made once.
// Weights and gradients are f32, moments f32 or bf16, the copy bf16 or none.
// Launch, in turn: gradient_squares (geometry::adamw), adamw_prepare (one block), adamw_step_* (geometry::adamw).
// Bytes: 4 an element for the norm; 28 for the step (w, m, v in and out, grad in), 30 with the copy, 20 and 22 with bf16
// moments. A norm that is not finite leaves everything as it was, and is not counted as an update.
#include "common.cuh"

constexpr int THREADS = 256;
// Elements of a block.
constexpr int TILE = 8192;
constexpr int LANES = 8;

// As the Rust struct of the same name.
struct AdamWParameter {
    float *weight;
    const float *grad;
    void *first_moment;
    void *second_moment;
    // Null when nobody computes in bf16.
    bf16 *copy;
    i64 num_elements;
    float weight_decay;
    int unused;
};

struct AdamWTile {
    i32 parameter;
    // Which TILE elements of it.
    i32 part;
};

struct AdamWSettings {
    float learning_rate, beta1, beta2, epsilon;
    // The norm that longer gradients are scaled down to; 0 switches clipping off.
    float max_norm;
    // Multiplies every gradient before anything else: 1 / micro-batches, for instance.
    float grad_scale;
};

// What one step's launches tell each other, and the host when it cares to look. `num_updates` lives on.
struct AdamWState {
    double norm;
    i64 num_updates;
    float grad_scale;
    // learning_rate / (1 - beta1^n)
    float step_size;
    // 1 / sqrt(1 - beta2^n)
    float second_correction;
    // 1 when the norm is finite and the step is taken.
    int applies;
};

// The sizes that the Rust structs have.
static_assert(sizeof(AdamWParameter) == 56 && sizeof(AdamWTile) == 8, "layout of the tables");
static_assert(sizeof(AdamWSettings) == 24 && sizeof(AdamWState) == 32, "layout of the settings and the state");

__device__ __forceinline__ AdamWParameter of_tile(const AdamWParameter *parameters, const AdamWTile *tiles, i64 *first,
                                                  int *n) {
    const AdamWTile tile = tiles[blockIdx.x];
    const AdamWParameter parameter = parameters[tile.parameter];
    *first = (i64)tile.part * TILE;
    *n = int(min(parameter.num_elements - *first, (i64)TILE));
    return parameter;
}

template <bool WIDE> __device__ __forceinline__ double tile_squares(const float *grad, int n) {
    constexpr int CHUNKS = TILE / (THREADS * 4);
    uint4 chunks[CHUNKS];
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) chunks[c] = load_chunk<float, WIDE>(grad, (threadIdx.x + c * THREADS) * 4, n);
    double total = 0.0;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        float g[4];
        unpack(chunks[c], g);
        total += g[0] * g[0] + g[1] * g[1] + (g[2] * g[2] + g[3] * g[3]);
    }
    return total;
}

// partials f64 [tiles]
extern "C" __global__ void __launch_bounds__(THREADS)
gradient_squares(const AdamWParameter *parameters, const AdamWTile *tiles, double *partials) {
    __shared__ double scratch[MAX_WARPS];
    i64 first;
    int n;
    const AdamWParameter parameter = of_tile(parameters, tiles, &first, &n);
    const float *grad = parameter.grad + first;
    double total = n == TILE && is_wide(grad, 0) ? tile_squares<true>(grad, n) : tile_squares<false>(grad, n);
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

// The norm of all gradients, whether the step applies, and what is the same for all of its elements.
extern "C" __global__ void __launch_bounds__(MAX_THREADS)
adamw_prepare(const double *partials, AdamWState *state, AdamWSettings settings, i64 num_tiles) {
    __shared__ double scratch[MAX_WARPS];
    double total = 0.0;
    for (i64 i = threadIdx.x; i < num_tiles; i += blockDim.x) total += partials[i];
    total = block_sum(total, scratch);
    if (threadIdx.x > 0) return;
    const double norm = sqrt(total) * fabs((double)settings.grad_scale);
    // Infinity less itself is NaN, and NaN equals nothing.
    const bool finite = norm - norm == 0.0;
    state->norm = norm;
    state->applies = finite;
    if (!finite) return;
    state->num_updates += 1;
    const double n = (double)state->num_updates;
    const double clip = settings.max_norm > 0.0f && norm > settings.max_norm ? settings.max_norm / norm : 1.0;
    state->grad_scale = float(clip * settings.grad_scale);
    state->step_size = float(settings.learning_rate / (1.0 - pow((double)settings.beta1, n)));
    state->second_correction = float(1.0 / sqrt(1.0 - pow((double)settings.beta2, n)));
}

template <class M, bool WIDE>
__device__ __forceinline__ void step_tile(const AdamWParameter &parameter, i64 first, int n, const AdamWState &state,
                                          const AdamWSettings &settings) {
    float *weight = parameter.weight + first;
    const float *grad = parameter.grad + first;
    M *first_moment = (M *)parameter.first_moment + first;
    M *second_moment = (M *)parameter.second_moment + first;
    const float keep = float(1.0 - (double)settings.learning_rate * parameter.weight_decay);
    const float one_minus_beta1 = 1.0f - settings.beta1, one_minus_beta2 = 1.0f - settings.beta2;
    for (int at = threadIdx.x * LANES; at < n; at += THREADS * LANES) {
        float w[LANES], g[LANES], m[LANES], v[LANES];
        load_values<float, LANES, WIDE>(weight, at, n, w);
        load_values<float, LANES, WIDE>(grad, at, n, g);
        load_values<M, LANES, WIDE>(first_moment, at, n, m);
        load_values<M, LANES, WIDE>(second_moment, at, n, v);
#pragma unroll
        for (int i = 0; i < LANES; i++) {
            const float scaled = g[i] * state.grad_scale;
            m[i] = settings.beta1 * m[i] + one_minus_beta1 * scaled;
            v[i] = settings.beta2 * v[i] + one_minus_beta2 * scaled * scaled;
            const float divisor = sqrtf(v[i]) * state.second_correction + settings.epsilon;
            w[i] = w[i] * keep - state.step_size * m[i] / divisor;
        }
        store_values<float, LANES, WIDE>(weight, at, n, w);
        store_values<M, LANES, WIDE>(first_moment, at, n, m);
        store_values<M, LANES, WIDE>(second_moment, at, n, v);
        if (parameter.copy) store_values<bf16, LANES, WIDE>(parameter.copy + first, at, n, w);
    }
}

template <class M>
__device__ __forceinline__ void step(const AdamWParameter *parameters, const AdamWTile *tiles, const AdamWState *shared_state,
                                     const AdamWSettings &settings) {
    const AdamWState state = *shared_state;
    if (!state.applies) return;
    i64 first;
    int n;
    const AdamWParameter parameter = of_tile(parameters, tiles, &first, &n);
    const bool wide = n % LANES == 0 && is_wide(parameter.weight, 0) && is_wide(parameter.grad, 0) &&
                      is_wide((const M *)parameter.first_moment, 0) && is_wide((const M *)parameter.second_moment, 0) &&
                      is_wide(parameter.copy, 0);
    if (wide) {
        step_tile<M, true>(parameter, first, n, state, settings);
    } else {
        step_tile<M, false>(parameter, first, n, state, settings);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 3)
adamw_step_f32(const AdamWParameter *parameters, const AdamWTile *tiles, const AdamWState *state, AdamWSettings settings) {
    step<float>(parameters, tiles, state, settings);
}

// Moments are kept in bf16.
extern "C" __global__ void __launch_bounds__(THREADS, 3)
adamw_step_bf16(const AdamWParameter *parameters, const AdamWTile *tiles, const AdamWState *state, AdamWSettings settings) {
    step<bf16>(parameters, tiles, state, settings);
}
