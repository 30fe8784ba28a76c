// Grouped matrix products over rows sorted by expert, bf16 in, f32 sums, on mma.m16n8k16 (sm_80 and later).
//
// Shapes: x_ri, y_ro, w_eoi, offsets (i32) [e + 1] on the device: rows offsets[e]..offsets[e + 1] are expert e's.
//   forward          y = x·W_eᵀ         grouped_gemm_forward_{bf16,f32}, with SwiGLU behind it grouped_gemm_swiglu
//   input gradient   dx = dy·W_e        grouped_gemm_input_gradient_{bf16,f32}
//   weight gradient  dW_e = dy_eᵀ·x_e   grouped_gemm_weight_gradient_{bf16,f32}
// Rows behind the last offset come out zero, as does the weight gradient of an expert without rows. `accumulate` adds to
// the output instead, and leaves those alone. Null offsets are one expert with all rows: a plain product. Where `rows`
// is not null, row r of the operand is row rows[r] of what is given (-1: zeros), so that no gathered copy is made.
//
// Launch: 128 threads and any number of blocks, which walk the tiles that they find from the offsets, so that the host
// knows no counts; as many as fit at once, two a multiprocessor, are right. 64 KiB of dynamic shared memory.
// o and i (f and i for SwiGLU) are multiples of 8, bases aligned to 16 bytes. Fewer than 2^31 tiles.
// Registers: up to 255 (128 hold the sums), so two blocks a multiprocessor.
// Tile: 128x128 outputs, 32 deep, 4 stages of 16 KiB; 4 warps of 64x64. 64 FLOPs for each byte a tile loads (128·128·2 /
// (256·2)): above what L2 gives, so the tiles of 8 rows of tiles are walked together to share their weights there.
// Each output has one owner and one order of summation: the same bits for any grid.
#include "grouped_gemm.cuh"

namespace {

constexpr int TILE = 128;
constexpr int DEPTH = 32;
constexpr int STAGES = 4;
constexpr int THREADS = 128;
constexpr int OPERAND_BYTES = TILE * DEPTH * 2;
constexpr int STAGE_BYTES = 2 * OPERAND_BYTES;
// A warp's part of a tile, 64x64, in pieces of 16x8.
constexpr int M_PIECES = 4;
constexpr int N_PIECES = 8;

typedef float Sums[M_PIECES][N_PIECES][4];

// An operand whose summed dimension is contiguous: 128 rows of 32 elements. Thread t copies chunk t % 4 of the rows
// t / 4 + 32·j.
struct RowOperand {
    static constexpr bool TRANSPOSED = false;
    const bf16 *row[4];
    int k, depth;

    __device__ __forceinline__ void copy(SharedAddress stage) {
        int chunk = threadIdx.x % 4;
        bool inside = k + chunk * 8 < depth;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            copy_async(stage + swizzled<4>(threadIdx.x / 4 + 32 * j, chunk), row[j] + (inside ? k + chunk * 8 : 0),
                       inside && row[j]);
        }
        k += DEPTH;
    }

    // The fragment of rows m..m + 16 and the 16 elements from 16·step for the left operand of mma_bf16.
    static __device__ __forceinline__ Fragment4 left(SharedAddress stage, int m, int step) {
        int lane = threadIdx.x % 32;
        return ldmatrix(stage + swizzled<4>(m + lane % 16, step * 2 + lane / 16));
    }

    // Words 0 and 1 are the right operand for columns n..n + 8, words 2 and 3 for the next eight.
    static __device__ __forceinline__ Fragment4 right(SharedAddress stage, int n, int step) {
        int lane = threadIdx.x % 32;
        return ldmatrix(stage + swizzled<4>(n + lane % 8 + lane / 16 * 8, step * 2 + lane / 8 % 2));
    }
};

// An operand whose summed dimension is the row: 32 rows of 128 elements. Thread t copies chunk t % 16 of the rows
// t / 16 + 8·j. The rows to gather are read one stage ahead, so that no copy waits for its index.
struct ColumnOperand {
    static constexpr bool TRANSPOSED = true;
    const bf16 *column;
    const int *rows;
    int stride, k, depth;
    bool inside;
    int next[4];

    __device__ __forceinline__ void look_up() {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int row = k + threadIdx.x / 16 + 8 * j;
            next[j] = row < depth ? (rows ? rows[row] : row) : -1;
        }
    }

    __device__ __forceinline__ void copy(SharedAddress stage) {
        int chunk = threadIdx.x % 16;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            bool valid = inside && next[j] >= 0;
            copy_async(stage + swizzled<16>(threadIdx.x / 16 + 8 * j, chunk),
                       column + (valid ? i64(next[j]) * stride : 0), valid);
        }
        k += DEPTH;
        look_up();
    }

    static __device__ __forceinline__ Fragment4 left(SharedAddress stage, int m, int step) {
        int lane = threadIdx.x % 32;
        return ldmatrix_transposed(
            stage + swizzled<16>(step * 16 + lane % 8 + lane / 16 * 8, m / 8 + lane / 8 % 2));
    }

    static __device__ __forceinline__ Fragment4 right(SharedAddress stage, int n, int step) {
        int lane = threadIdx.x % 32;
        return ldmatrix_transposed(stage + swizzled<16>(step * 16 + lane % 16, n / 8 + lane / 16));
    }
};

// Rows first..end of an operand, 128 of them for this thread's copies; `place` gives the row of each in memory, -1 none.
template <class Place>
__device__ __forceinline__ RowOperand row_operand(const bf16 *base, int stride, int depth, Place place) {
    RowOperand operand;
    operand.k = 0;
    operand.depth = depth;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        int row = place(threadIdx.x / 4 + 32 * j);
        operand.row[j] = row < 0 ? nullptr : base + i64(row) * stride;
    }
    return operand;
}

// Columns from `first` of the rows begin..end of an operand of `width` columns.
__device__ __forceinline__ ColumnOperand column_operand(const bf16 *base, const int *rows, int width, int first,
                                                        int begin, int end) {
    ColumnOperand operand;
    int column = first + threadIdx.x % 16 * 8;
    operand.inside = column < width;
    operand.column = base + (operand.inside ? column : 0);
    operand.rows = rows;
    operand.stride = width;
    operand.k = begin;
    operand.depth = end;
    operand.look_up();
    return operand;
}

// sums += left·right over `steps` stages. Leaves no copy under way and shared memory free.
template <class Left, class Right>
__device__ __forceinline__ void multiply(Sums &sums, Left left, Right right, int steps, SharedAddress shared) {
    int warp_m = threadIdx.x / 64 * 64, warp_n = threadIdx.x / 32 % 2 * 64;
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps) {
            left.copy(shared + s * STAGE_BYTES);
            right.copy(shared + s * STAGE_BYTES + OPERAND_BYTES);
        }
        commit_copies();
    }
    for (int step = 0; step < steps; step++) {
        wait_copies<STAGES - 2>();
        // Everybody's copies of this stage have landed, and everybody is done with the stage before it.
        __syncthreads();
        if (step + STAGES - 1 < steps) {
            SharedAddress stage = shared + (step + STAGES - 1) % STAGES * STAGE_BYTES;
            left.copy(stage);
            right.copy(stage + OPERAND_BYTES);
        }
        commit_copies();
        SharedAddress stage = shared + step % STAGES * STAGE_BYTES;
#pragma unroll
        for (int part = 0; part < DEPTH / 16; part++) {
            Fragment4 a[M_PIECES], b[N_PIECES / 2];
#pragma unroll
            for (int m = 0; m < M_PIECES; m++) a[m] = Left::left(stage, warp_m + m * 16, part);
#pragma unroll
            for (int n = 0; n < N_PIECES / 2; n++) b[n] = Right::right(stage + OPERAND_BYTES, warp_n + n * 16, part);
#pragma unroll
            for (int m = 0; m < M_PIECES; m++) {
#pragma unroll
                for (int n = 0; n < N_PIECES; n++) {
                    mma_bf16(sums[m][n], a[m], b[n / 2].word[n % 2 * 2], b[n / 2].word[n % 2 * 2 + 1]);
                }
            }
        }
    }
    wait_copies<0>();
    __syncthreads();
}

__device__ __forceinline__ void clear(Sums &sums) {
#pragma unroll
    for (int m = 0; m < M_PIECES; m++) {
#pragma unroll
        for (int n = 0; n < N_PIECES; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sums[m][n][i] = 0.0f;
        }
    }
}

// This lane's first row of a warp's part of a tile at row m.
__device__ __forceinline__ int lane_row(int m) { return m + threadIdx.x / 64 * 64 + threadIdx.x % 32 / 4; }

// Stores the tile at row m, below row end, and column n of an output of `width` columns.
template <class Out>
__device__ __forceinline__ void store(Out *out, Sums &sums, int m, int end, int n, int width, bool accumulate) {
#pragma unroll
    for (int piece = 0; piece < M_PIECES; piece++) {
        store_pieces(out, sums[piece], lane_row(m) + piece * 16, end, n + threadIdx.x / 32 % 2 * 64, width, accumulate);
    }
}

// out = a·W_eᵀ, or a·W_e where `Weight` is a ColumnOperand.
template <class Weight, class Out>
__device__ __forceinline__ void product_over_experts(Out *out, const bf16 *a, const bf16 *w, const int *offsets,
                                                     const int *rows, int num_rows, int num_experts, int width,
                                                     int depth, bool accumulate) {
    SharedAddress shared = shared_address(dynamic_shared());
    TileWalk<TILE> walk(offsets, num_experts, num_rows, ceil_div(width, TILE));
    for (int tile = blockIdx.x; walk.find(tile); tile += gridDim.x) {
        if (walk.is_padding() && accumulate) break;
        Sums sums;
        clear(sums);
        int n = walk.n * TILE;
        if (!walk.is_padding()) {
            const bf16 *w_e = w + i64(walk.expert) * width * depth;
            RowOperand left = row_operand(a, depth, depth, [&](int row) {
                row += walk.m;
                return row >= walk.end ? -1 : rows ? rows[row] : row;
            });
            int steps = ceil_div(depth, DEPTH);
            if constexpr (Weight::TRANSPOSED) {
                multiply(sums, left, column_operand(w_e, nullptr, width, n, 0, depth), steps, shared);
            } else {
                RowOperand right = row_operand(
                    w_e, depth, depth, [&](int column) { return n + column < width ? n + column : -1; });
                multiply(sums, left, right, steps, shared);
            }
        }
        store(out, sums, walk.m, walk.end, n, width, accumulate);
    }
}

template <class Out>
__device__ __forceinline__ void weight_gradient(Out *dw, const bf16 *dy, const bf16 *x, const int *offsets,
                                                const int *dy_rows, const int *x_rows, int num_rows, int num_experts,
                                                int o, int i, bool accumulate) {
    SharedAddress shared = shared_address(dynamic_shared());
    int m_tiles = ceil_div(o, TILE), n_tiles = ceil_div(i, TILE);
    int tiles_each = m_tiles * n_tiles;
    for (int tile = blockIdx.x; tile < num_experts * tiles_each; tile += gridDim.x) {
        int expert = tile / tiles_each, within = tile % tiles_each;
        int begin = offsets ? offsets[expert] : 0, end = offsets ? offsets[expert + 1] : num_rows;
        if (begin == end && accumulate) continue;
        int m = within / n_tiles * TILE, n = within % n_tiles * TILE;
        Sums sums;
        clear(sums);
        multiply(sums, column_operand(dy, dy_rows, o, m, begin, end), column_operand(x, x_rows, i, n, begin, end),
                 ceil_div(end - begin, DEPTH), shared);
        store(dw + i64(expert) * o * i, sums, m, o, n, i, accumulate);
    }
}

} // namespace

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    grouped_gemm_forward_bf16(bf16 *y, const bf16 *x, const bf16 *w, const int *offsets, const int *rows, int num_rows,
                              int num_experts, int o, int i, int accumulate) {
    product_over_experts<RowOperand>(y, x, w, offsets, rows, num_rows, num_experts, o, i, accumulate);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    grouped_gemm_forward_f32(float *y, const bf16 *x, const bf16 *w, const int *offsets, const int *rows, int num_rows,
                             int num_experts, int o, int i, int accumulate) {
    product_over_experts<RowOperand>(y, x, w, offsets, rows, num_rows, num_experts, o, i, accumulate);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    grouped_gemm_input_gradient_bf16(bf16 *dx, const bf16 *dy, const bf16 *w, const int *offsets, const int *rows,
                                     int num_rows, int num_experts, int o, int i, int accumulate) {
    product_over_experts<ColumnOperand>(dx, dy, w, offsets, rows, num_rows, num_experts, i, o, accumulate);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    grouped_gemm_input_gradient_f32(float *dx, const bf16 *dy, const bf16 *w, const int *offsets, const int *rows,
                                    int num_rows, int num_experts, int o, int i, int accumulate) {
    product_over_experts<ColumnOperand>(dx, dy, w, offsets, rows, num_rows, num_experts, i, o, accumulate);
}

// `dy_rows` and `x_rows` gather each operand by itself.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    grouped_gemm_weight_gradient_bf16(bf16 *dw, const bf16 *dy, const bf16 *x, const int *offsets, const int *dy_rows,
                                      const int *x_rows, int num_rows, int num_experts, int o, int i, int accumulate) {
    weight_gradient(dw, dy, x, offsets, dy_rows, x_rows, num_rows, num_experts, o, i, accumulate);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    grouped_gemm_weight_gradient_f32(float *dw, const bf16 *dy, const bf16 *x, const int *offsets, const int *dy_rows,
                                     const int *x_rows, int num_rows, int num_experts, int o, int i, int accumulate) {
    weight_gradient(dw, dy, x, offsets, dy_rows, x_rows, num_rows, num_experts, o, i, accumulate);
}

// h_rf = silu(gate)·up·weights_r over [gate | up] = x·W_eᵀ, w_e2fi with the rows of gate first. Where `gate_up` is not
// null, [gate | up] is stored there for the backward. Null weights are ones.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    grouped_gemm_swiglu(bf16 *h, bf16 *gate_up, const bf16 *x, const bf16 *w, const float *weights, const int *offsets,
                        const int *rows, int num_rows, int num_experts, int f, int i) {
    SharedAddress shared = shared_address(dynamic_shared());
    TileWalk<TILE> walk(offsets, num_experts, num_rows, ceil_div(f, TILE / 2));
    for (int tile = blockIdx.x; walk.find(tile); tile += gridDim.x) {
        Sums sums;
        clear(sums);
        int n = walk.n * (TILE / 2);
        if (!walk.is_padding()) {
            RowOperand left = row_operand(x, i, i, [&](int row) {
                row += walk.m;
                return row >= walk.end ? -1 : rows ? rows[row] : row;
            });
            RowOperand right = row_operand(w + i64(walk.expert) * 2 * f * i, i, i,
                                           [&](int column) { return gate_up_row(n, column, f); });
            multiply(sums, left, right, ceil_div(i, DEPTH), shared);
        }
        const float *tile_weights = walk.is_padding() ? nullptr : weights;
#pragma unroll
        for (int piece = 0; piece < M_PIECES; piece++) {
            store_swiglu(h, gate_up, tile_weights, sums[piece], lane_row(walk.m) + piece * 16, walk.end,
                         n + threadIdx.x / 32 % 2 * 32, f);
        }
    }
}
