// The grouped products of grouped_gemm.cu for Hopper (sm_90a): the same kernels, arguments and rules, on wgmma.
//
// Names: grouped_gemm_hopper_{forward,input_gradient,weight_gradient}_{bf16,f32} and grouped_gemm_hopper_swiglu.
// Launch: 384 threads, one block a multiprocessor, 196672 bytes of dynamic shared memory.
// Registers: 168 by launch bounds, of which the copying warpgroup keeps 88 and each multiplying one takes 208.
// Tile: 128x256 outputs, 64 deep, 4 stages of 48 KiB. Warpgroup 0 copies; warpgroups 1 and 2 multiply 64 rows each. 85
// FLOPs for each byte a tile loads (128·256·2 / (384·2)).
// Copies are cp.async and not bulk tensor copies: they gather rows, end where an expert ends and need no tensor map of the
// host, for some 330 instructions a warp and stage, a third of what the products of a stage leave time for.
//
// A stage goes round: copies are issued where `empty` says that both warpgroups are done with it; when LAG stages are
// under way, the oldest is waited for, fenced for wgmma and handed over by `full`. A warpgroup gives a stage back when its
// products of the next one were issued, so LAG is at most STAGES - 1.
#include "grouped_gemm.cuh"
#include "hopper.cuh"

namespace {

constexpr int TILE_M = 128;
constexpr int TILE_N = 256;
constexpr int DEPTH = 64;
constexpr int STAGES = 4;
constexpr int LAG = 2;
constexpr int GROUP_THREADS = 128;
constexpr int THREADS = 3 * GROUP_THREADS;
constexpr int LEFT_BYTES = TILE_M * DEPTH * 2;
constexpr int STAGE_BYTES = (TILE_M + TILE_N) * DEPTH * 2;
// Behind the stages, full and empty of each.
constexpr int BARRIERS = STAGES * STAGE_BYTES;
constexpr int COPYING_REGISTERS = 88;
constexpr int MULTIPLYING_REGISTERS = 208;
// Eight rows of 128 bytes.
constexpr int ATOM_BYTES = 1024;
// 64 columns of a column operand: its 64 rows of 128 bytes.
constexpr int COLUMN_BLOCK_BYTES = DEPTH * 128;

// The place in the ring of stages, and how often it went round.
struct Ring {
    int stage = 0;
    u32 round = 0;

    __device__ __forceinline__ void advance() {
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        round += stage == 0;
    }
};

struct Stages {
    SharedAddress base;

    __device__ __forceinline__ SharedAddress left(int stage) const { return base + stage * STAGE_BYTES; }
    __device__ __forceinline__ SharedAddress right(int stage) const { return left(stage) + LEFT_BYTES; }
    __device__ __forceinline__ SharedAddress full(int stage) const { return base + BARRIERS + stage * 16; }
    __device__ __forceinline__ SharedAddress empty(int stage) const { return base + BARRIERS + stage * 16 + 8; }
};

__device__ __forceinline__ Stages make_stages() {
    Stages stages{shared_address(dynamic_shared())};
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            // One arrival a warp: four copy, eight multiply.
            barrier_init(stages.full(stage), 4);
            barrier_init(stages.empty(stage), 8);
        }
    }
    __syncthreads();
    return stages;
}

// An operand of ROWS rows whose summed dimension is contiguous, 64 of it at a time. Thread t copies chunk t % 8 of the rows
// t / 8 + 16·j; `place(r, j)` gives where that row number r of the tile lies in memory, -1 nowhere.
template <int ROWS, class Place> struct RowOperand {
    const bf16 *base;
    int stride, depth, k;
    Place place;

    __device__ __forceinline__ void copy(SharedAddress to) {
        // Up to 24 addresses are computed for each stage anew: kept from stage to stage they would not fit the registers.
        int thread = opaque(threadIdx.x), apart = opaque(stride);
        int chunk = thread % 8, at = k + chunk * 8;
        bool inside = at < depth;
#pragma unroll
        for (int j = 0; j < ROWS / 16; j++) {
            int row = place(thread / 8 + 16 * j, j);
            bool valid = inside && row >= 0;
            copy_async(to + swizzled<8>(thread / 8 + 16 * j, chunk), base + (valid ? i64(row) * apart + at : 0), valid);
        }
        k += DEPTH;
    }
};

template <int ROWS, class Place>
__device__ __forceinline__ RowOperand<ROWS, Place> row_operand(const bf16 *base, int depth, Place place) {
    return {base, depth, depth, 0, place};
}

// An operand of COLUMNS columns whose summed dimension is the row: rows k..k + 64, below `end`, gathered where `rows` is
// not null. Thread t copies chunk t % CHUNKS of the rows t / CHUNKS + j·128 / CHUNKS. Indices are read one stage ahead, so
// that no copy waits for its index.
template <int COLUMNS> struct ColumnOperand {
    static constexpr int CHUNKS = COLUMNS / 8, SIDE_BY_SIDE = GROUP_THREADS / CHUNKS, COUNT = DEPTH / SIDE_BY_SIDE;
    const bf16 *column;
    const int *rows;
    int stride, k, end;
    bool inside;
    int next[COUNT];

    __device__ __forceinline__ ColumnOperand(const bf16 *base, const int *rows, int width, int first, int begin, int end)
        : rows(rows), stride(width), k(begin), end(end) {
        int at = first + threadIdx.x % CHUNKS * 8;
        inside = at < width;
        column = base + (inside ? at : 0);
        look_up();
    }

    __device__ __forceinline__ void look_up() {
#pragma unroll
        for (int j = 0; j < COUNT; j++) {
            int row = k + threadIdx.x / CHUNKS + SIDE_BY_SIDE * j;
            next[j] = row < end ? (rows ? rows[row] : row) : -1;
        }
    }

    __device__ __forceinline__ void copy(SharedAddress to) {
        int chunk = threadIdx.x % CHUNKS;
        to += chunk / 8 * COLUMN_BLOCK_BYTES;
#pragma unroll
        for (int j = 0; j < COUNT; j++) {
            bool valid = inside && next[j] >= 0;
            copy_async(to + swizzled<8>(threadIdx.x / CHUNKS + SIDE_BY_SIDE * j, chunk % 8),
                       column + (valid ? i64(next[j]) * stride : 0), valid);
        }
        k += DEPTH;
        look_up();
    }
};

// What the copying warpgroup keeps from tile to tile.
struct Copier {
    Stages stages;
    Ring ring;
    // Stages copied but not handed over yet, at most LAG; the first of them.
    int pending = 0;
    int oldest = 0;

    __device__ __forceinline__ void hand_over() {
        fence_proxy_async();
        __syncwarp();
        if (threadIdx.x % 32 == 0) barrier_arrive(stages.full(oldest));
        oldest = oldest + 1 == STAGES ? 0 : oldest + 1;
        pending--;
    }

    template <class Left, class Right> __device__ __forceinline__ void copy(Left &left, Right &right, int steps) {
        for (int step = 0; step < steps; step++) {
            if (pending == LAG) {
                wait_copies<LAG - 1>();
                hand_over();
            }
            barrier_wait(stages.empty(ring.stage), (ring.round & 1) ^ 1);
            left.copy(stages.left(ring.stage));
            right.copy(stages.right(ring.stage));
            commit_copies();
            pending++;
            ring.advance();
        }
    }

    __device__ __forceinline__ void finish() {
        wait_copies<0>();
        while (pending > 0) hand_over();
    }
};

// What a multiplying warpgroup keeps from tile to tile.
struct Multiplier {
    Stages stages;
    Ring ring;

    // sums += left·right over `steps` stages.
    template <bool LEFT_IS_COLUMNS, bool RIGHT_IS_COLUMNS>
    __device__ __forceinline__ void multiply(WarpgroupSums &sums, int steps) {
        // 64 rows of a row operand, or 64 columns of a column operand: the same distance.
        int group = threadIdx.x / GROUP_THREADS - 1;
        int before = 0;
        for (int step = 0; step < steps; step++) {
            barrier_wait(stages.full(ring.stage), ring.round & 1);
            u32 left = descriptor_address(stages.left(ring.stage)) + group * COLUMN_BLOCK_BYTES;
            u32 right = descriptor_address(stages.right(ring.stage));
            wgmma_fence();
#pragma unroll
            for (int part = 0; part < DEPTH / 16; part++) {
                // 16 deep are 32 bytes of each row, or two atoms of eight rows.
                wgmma_64x256<LEFT_IS_COLUMNS, RIGHT_IS_COLUMNS>(
                    sums,
                    matrix_descriptor(left + part * (LEFT_IS_COLUMNS ? 2 * ATOM_BYTES : 32), ATOM_BYTES,
                                      COLUMN_BLOCK_BYTES),
                    matrix_descriptor(right + part * (RIGHT_IS_COLUMNS ? 2 * ATOM_BYTES : 32), ATOM_BYTES,
                                      COLUMN_BLOCK_BYTES));
            }
            wgmma_commit();
            wgmma_wait<1>(sums);
            if (step > 0) give_back(before);
            before = ring.stage;
            ring.advance();
        }
        wgmma_wait<0>(sums);
        if (steps > 0) give_back(before);
    }

    __device__ __forceinline__ void give_back(int stage) {
        __syncwarp();
        if (threadIdx.x % 32 == 0) barrier_arrive(stages.empty(stage));
    }
};

__device__ __forceinline__ void clear(WarpgroupSums &sums) {
#pragma unroll
    for (int n = 0; n < 32; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) sums[n][i] = 0.0f;
    }
}

__device__ __forceinline__ bool is_copier() { return threadIdx.x < GROUP_THREADS; }

// This lane's first row of its warpgroup's part of a tile at row m.
__device__ __forceinline__ int lane_row(int m) {
    return m + (threadIdx.x - GROUP_THREADS) / 32 * 16 + threadIdx.x % 32 / 4;
}

// The rows of a tile that thread t copies, t / 8 + 16·j.
struct GatheredRows {
    int row[TILE_M / 16];

    __device__ __forceinline__ GatheredRows(const int *rows, int first, int end) {
#pragma unroll
        for (int j = 0; j < TILE_M / 16; j++) {
            int at = first + threadIdx.x / 8 + 16 * j;
            row[j] = at >= end ? -1 : rows ? rows[at] : at;
        }
    }

    __device__ __forceinline__ int operator()(int, int j) const { return row[j]; }
};

// out = a·W_eᵀ, or a·W_e with TRANSPOSED weights.
template <bool TRANSPOSED, class Out>
__device__ __forceinline__ void product_over_experts(Out *out, const bf16 *a, const bf16 *w, const int *offsets,
                                                     const int *rows, int num_rows, int num_experts, int width,
                                                     int depth, bool accumulate) {
    const Stages stages = make_stages();
    const int steps = ceil_div(depth, DEPTH);
    TileWalk<TILE_M> walk(offsets, num_experts, num_rows, ceil_div(width, TILE_N));
    if (is_copier()) {
        give_registers<COPYING_REGISTERS>();
        Copier copier{stages, {}};
        for (int tile = blockIdx.x; walk.find(tile) && !walk.is_padding(); tile += gridDim.x) {
            const bf16 *w_e = w + i64(walk.expert) * width * depth;
            const int n = walk.n * TILE_N;
            auto left = row_operand<TILE_M>(a, depth, GatheredRows(rows, walk.m, walk.end));
            if constexpr (TRANSPOSED) {
                ColumnOperand<TILE_N> right(w_e, nullptr, width, n, 0, depth);
                copier.copy(left, right, steps);
            } else {
                auto right = row_operand<TILE_N>(w_e, depth, [=](int column, int) {
                    return n + column < width ? n + column : -1;
                });
                copier.copy(left, right, steps);
            }
        }
        copier.finish();
    } else {
        take_registers<MULTIPLYING_REGISTERS>();
        Multiplier multiplier{stages, {}};
        for (int tile = blockIdx.x; walk.find(tile); tile += gridDim.x) {
            if (walk.is_padding() && accumulate) break;
            WarpgroupSums sums;
            clear(sums);
            multiplier.multiply<false, TRANSPOSED>(sums, walk.is_padding() ? 0 : steps);
            store_pieces(out, sums, lane_row(walk.m), walk.end, walk.n * TILE_N, width, accumulate);
        }
    }
}

// The rows of expert `e`.
struct ExpertRows {
    int begin, end;

    __device__ __forceinline__ ExpertRows(const int *offsets, int e, int num_rows)
        : begin(offsets ? offsets[e] : 0), end(offsets ? offsets[e + 1] : num_rows) {}

    __device__ __forceinline__ int steps() const { return ceil_div(end - begin, DEPTH); }
};

template <class Out>
__device__ __forceinline__ void weight_gradient(Out *dw, const bf16 *dy, const bf16 *x, const int *offsets,
                                                const int *dy_rows, const int *x_rows, int num_rows, int num_experts,
                                                int o, int i, bool accumulate) {
    const Stages stages = make_stages();
    const int n_tiles = ceil_div(i, TILE_N), tiles_each = ceil_div(o, TILE_M) * n_tiles;
    const int num_tiles = num_experts * tiles_each;
    if (is_copier()) {
        give_registers<COPYING_REGISTERS>();
        Copier copier{stages, {}};
        for (int tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {
            const int within = tile % tiles_each;
            const ExpertRows expert(offsets, tile / tiles_each, num_rows);
            ColumnOperand<TILE_M> left(dy, dy_rows, o, within / n_tiles * TILE_M, expert.begin, expert.end);
            ColumnOperand<TILE_N> right(x, x_rows, i, within % n_tiles * TILE_N, expert.begin, expert.end);
            copier.copy(left, right, expert.steps());
        }
        copier.finish();
    } else {
        take_registers<MULTIPLYING_REGISTERS>();
        Multiplier multiplier{stages, {}};
        for (int tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {
            const int within = tile % tiles_each;
            const ExpertRows expert(offsets, tile / tiles_each, num_rows);
            if (expert.begin == expert.end && accumulate) continue;
            WarpgroupSums sums;
            clear(sums);
            multiplier.multiply<true, true>(sums, expert.steps());
            store_pieces(dw + i64(tile / tiles_each) * o * i, sums, lane_row(within / n_tiles * TILE_M), o,
                         within % n_tiles * TILE_N, i, accumulate);
        }
    }
}

} // namespace

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    grouped_gemm_hopper_forward_bf16(bf16 *y, const bf16 *x, const bf16 *w, const int *offsets, const int *rows,
                                     int num_rows, int num_experts, int o, int i, int accumulate) {
    product_over_experts<false>(y, x, w, offsets, rows, num_rows, num_experts, o, i, accumulate);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    grouped_gemm_hopper_forward_f32(float *y, const bf16 *x, const bf16 *w, const int *offsets, const int *rows,
                                    int num_rows, int num_experts, int o, int i, int accumulate) {
    product_over_experts<false>(y, x, w, offsets, rows, num_rows, num_experts, o, i, accumulate);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    grouped_gemm_hopper_input_gradient_bf16(bf16 *dx, const bf16 *dy, const bf16 *w, const int *offsets,
                                            const int *rows, int num_rows, int num_experts, int o, int i,
                                            int accumulate) {
    product_over_experts<true>(dx, dy, w, offsets, rows, num_rows, num_experts, i, o, accumulate);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    grouped_gemm_hopper_input_gradient_f32(float *dx, const bf16 *dy, const bf16 *w, const int *offsets,
                                           const int *rows, int num_rows, int num_experts, int o, int i,
                                           int accumulate) {
    product_over_experts<true>(dx, dy, w, offsets, rows, num_rows, num_experts, i, o, accumulate);
}

// `dy_rows` and `x_rows` gather each operand by itself.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    grouped_gemm_hopper_weight_gradient_bf16(bf16 *dw, const bf16 *dy, const bf16 *x, const int *offsets,
                                             const int *dy_rows, const int *x_rows, int num_rows, int num_experts,
                                             int o, int i, int accumulate) {
    weight_gradient(dw, dy, x, offsets, dy_rows, x_rows, num_rows, num_experts, o, i, accumulate);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    grouped_gemm_hopper_weight_gradient_f32(float *dw, const bf16 *dy, const bf16 *x, const int *offsets,
                                            const int *dy_rows, const int *x_rows, int num_rows, int num_experts,
                                            int o, int i, int accumulate) {
    weight_gradient(dw, dy, x, offsets, dy_rows, x_rows, num_rows, num_experts, o, i, accumulate);
}

// As grouped_gemm_swiglu.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    grouped_gemm_hopper_swiglu(bf16 *h, bf16 *gate_up, const bf16 *x, const bf16 *w, const float *weights,
                               const int *offsets, const int *rows, int num_rows, int num_experts, int f, int i) {
    const Stages stages = make_stages();
    const int steps = ceil_div(i, DEPTH);
    TileWalk<TILE_M> walk(offsets, num_experts, num_rows, ceil_div(f, TILE_N / 2));
    if (is_copier()) {
        give_registers<COPYING_REGISTERS>();
        Copier copier{stages, {}};
        for (int tile = blockIdx.x; walk.find(tile) && !walk.is_padding(); tile += gridDim.x) {
            const int n = walk.n * (TILE_N / 2);
            auto left = row_operand<TILE_M>(x, i, GatheredRows(rows, walk.m, walk.end));
            auto right = row_operand<TILE_N>(w + i64(walk.expert) * 2 * f * i, i,
                                             [=](int column, int) { return gate_up_row(n, column, f); });
            copier.copy(left, right, steps);
        }
        copier.finish();
    } else {
        take_registers<MULTIPLYING_REGISTERS>();
        Multiplier multiplier{stages, {}};
        for (int tile = blockIdx.x; walk.find(tile); tile += gridDim.x) {
            WarpgroupSums sums;
            clear(sums);
            multiplier.multiply<false, false>(sums, walk.is_padding() ? 0 : steps);
            store_swiglu(h, gate_up, walk.is_padding() ? nullptr : weights, sums, lane_row(walk.m), walk.end,
                         walk.n * (TILE_N / 2), f);
        }
    }
}
