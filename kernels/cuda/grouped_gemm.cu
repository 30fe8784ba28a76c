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
#include "mma.cuh"

namespace {

constexpr int TILE = 128;
constexpr int DEPTH = 32;
constexpr int STAGES = 4;
constexpr int THREADS = 128;
constexpr int OPERAND_BYTES = TILE * DEPTH * 2;
constexpr int STAGE_BYTES = 2 * OPERAND_BYTES;
constexpr int BAND = 8;
// A warp's part of a tile, 64x64, in pieces of 16x8.
constexpr int M_PIECES = 4;
constexpr int N_PIECES = 8;

typedef float Sums[M_PIECES][N_PIECES][4];

__device__ __forceinline__ int ceil_div(int a, int b) { return (a + b - 1) / b; }

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

// Stores 32 columns from `column` of one row, of which this lane holds two in each of four pieces.
__device__ __forceinline__ void store_packed(bf16 *row, u32 (&words)[4], int column, int width, bool valid) {
    transpose_quad(words);
    column += threadIdx.x % 4 * 8;
    if (valid && column < width) {
        *reinterpret_cast<uint4 *>(row + column) = make_uint4(words[0], words[1], words[2], words[3]);
    }
}

__device__ __forceinline__ void store_32(bf16 *row, const float2 (&values)[4], int column, int width, bool valid,
                                         bool accumulate) {
    u32 words[4];
#pragma unroll
    for (int n = 0; n < 4; n++) {
        int at = column + n * 8 + threadIdx.x % 4 * 2;
        float2 old = make_float2(0.0f, 0.0f);
        if (accumulate && valid && at < width) old = unpack_bf16(*reinterpret_cast<const u32 *>(row + at));
        words[n] = pack_bf16(old.x + values[n].x, old.y + values[n].y);
    }
    store_packed(row, words, column, width, valid);
}

__device__ __forceinline__ void store_32(float *row, const float2 (&values)[4], int column, int width, bool valid,
                                         bool accumulate) {
#pragma unroll
    for (int n = 0; n < 4; n++) {
        int at = column + n * 8 + threadIdx.x % 4 * 2;
        if (!valid || at >= width) continue;
        float2 *place = reinterpret_cast<float2 *>(row + at);
        float2 old = accumulate ? *place : make_float2(0.0f, 0.0f);
        *place = make_float2(old.x + values[n].x, old.y + values[n].y);
    }
}

// Stores the tile at row m, below row end_m, and column n of an output of `width` columns.
template <class Out>
__device__ __forceinline__ void store(Out *out, const Sums &sums, int m, int end_m, int n, int width,
                                      bool accumulate) {
    m += threadIdx.x / 64 * 64 + threadIdx.x % 32 / 4;
    n += threadIdx.x / 32 % 2 * 64;
#pragma unroll
    for (int half_row = 0; half_row < 2 * M_PIECES; half_row++) {
        int row = m + half_row * 8;
#pragma unroll
        for (int part = 0; part < 2; part++) {
            float2 values[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float *sum = sums[half_row / 2][part * 4 + i] + half_row % 2 * 2;
                values[i] = make_float2(sum[0], sum[1]);
            }
            store_32(out + i64(row) * width, values, n + part * 32, width, row < end_m, accumulate);
        }
    }
}

// Finds tiles of TILE rows among experts. Each warp keeps its own, 32 experts at a time; tiles are asked for in rising
// order. Expert `num_experts` stands for the rows behind the last offset.
struct TileWalk {
    const int *offsets;
    int num_experts, num_rows, n_tiles;
    int base, before;
    // The tile found.
    int expert, m, n, end;

    __device__ __forceinline__ TileWalk(const int *offsets, int num_experts, int num_rows, int n_tiles)
        : offsets(offsets), num_experts(num_experts), num_rows(num_rows), n_tiles(n_tiles), base(0), before(0) {}

    __device__ __forceinline__ int offset(int e) const {
        if (e > num_experts) return num_rows;
        return offsets ? offsets[e] : (e == 0 ? 0 : num_rows);
    }

    __device__ __forceinline__ bool find(int tile) {
        const u32 all = 0xffffffffu;
        int lane = threadIdx.x % 32;
        for (; base <= num_experts; base += 32) {
            int e = base + lane;
            int begin_e = offset(e), end_e = offset(e + 1);
            int tiles = ceil_div(end_e - begin_e, TILE) * n_tiles;
            int sum = tiles;
            for (int distance = 1; distance < 32; distance *= 2) {
                int other = __shfl_up_sync(all, sum, distance);
                sum += lane >= distance ? other : 0;
            }
            u32 behind = __ballot_sync(all, tile < before + sum);
            if (behind) {
                int owner = __ffs(behind) - 1;
                int within = tile - before - __shfl_sync(all, sum - tiles, owner);
                expert = base + owner;
                end = __shfl_sync(all, end_e, owner);
                place(within, __shfl_sync(all, begin_e, owner));
                return true;
            }
            before += __shfl_sync(all, sum, 31);
        }
        return false;
    }

    // Tiles go down BAND rows of tiles, then right, so that those in flight together share weights and rows in L2.
    __device__ __forceinline__ void place(int within, int begin) {
        int m_tiles = ceil_div(end - begin, TILE);
        int first = within / (BAND * n_tiles) * BAND;
        int height = min(BAND, m_tiles - first);
        within -= first * n_tiles;
        m = begin + (first + within % height) * TILE;
        n = within / height;
    }

    __device__ __forceinline__ bool is_padding() const { return expert == num_experts; }
};

// out = a·W_eᵀ, or a·W_e where `Weight` is a ColumnOperand.
template <class Weight, class Out>
__device__ __forceinline__ void product_over_experts(Out *out, const bf16 *a, const bf16 *w, const int *offsets,
                                                     const int *rows, int num_rows, int num_experts, int width,
                                                     int depth, bool accumulate) {
    SharedAddress shared = shared_address(dynamic_shared());
    TileWalk walk(offsets, num_experts, num_rows, ceil_div(width, TILE));
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

// silu(gate)·up·weight of two neighbouring columns.
__device__ __forceinline__ u32 swiglu(u32 gate, u32 up, float weight) {
    float2 g = unpack_bf16(gate), u = unpack_bf16(up);
    return pack_bf16(u.x * (g.x * sigmoid(g.x) * weight), u.y * (g.y * sigmoid(g.y) * weight));
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
// null, [gate | up] is stored there for the backward. h is computed from its rounded values, as swiglu does from what is
// stored: the same bits as the two kernels one after the other. Null weights are ones.
// A warp's 64 columns are 32 of gate and the same 32 of up, so that each lane holds both factors of its products.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    grouped_gemm_swiglu(bf16 *h, bf16 *gate_up, const bf16 *x, const bf16 *w, const float *weights, const int *offsets,
                        const int *rows, int num_rows, int num_experts, int f, int i) {
    SharedAddress shared = shared_address(dynamic_shared());
    TileWalk walk(offsets, num_experts, num_rows, ceil_div(f, TILE / 2));
    for (int tile = blockIdx.x; walk.find(tile); tile += gridDim.x) {
        Sums sums;
        clear(sums);
        int n = walk.n * (TILE / 2);
        if (!walk.is_padding()) {
            RowOperand left = row_operand(x, i, i, [&](int row) {
                row += walk.m;
                return row >= walk.end ? -1 : rows ? rows[row] : row;
            });
            RowOperand right =
                row_operand(w + i64(walk.expert) * 2 * f * i, i, i, [&](int column) {
                    int of_f = n + column / 64 * 32 + column % 32;
                    return of_f >= f ? -1 : column % 64 < 32 ? of_f : f + of_f;
                });
            multiply(sums, left, right, ceil_div(i, DEPTH), shared);
        }
        int column = n + threadIdx.x / 32 % 2 * 32;
#pragma unroll
        for (int half_row = 0; half_row < 2 * M_PIECES; half_row++) {
            int row = walk.m + threadIdx.x / 64 * 64 + threadIdx.x % 32 / 4 + half_row * 8;
            bool valid = row < walk.end;
            float weight = valid && weights && !walk.is_padding() ? weights[row] : 1.0f;
            u32 gate[4], up[4], product[4];
#pragma unroll
            for (int n = 0; n < 4; n++) {
                const float *g = sums[half_row / 2][n] + half_row % 2 * 2;
                const float *u = sums[half_row / 2][n + 4] + half_row % 2 * 2;
                gate[n] = pack_bf16(g[0], g[1]);
                up[n] = pack_bf16(u[0], u[1]);
                product[n] = swiglu(gate[n], up[n], weight);
            }
            store_packed(h + i64(row) * f, product, column, f, valid);
            if (gate_up) {
                bf16 *both = gate_up + i64(row) * 2 * f;
                store_packed(both, gate, column, f, valid);
                store_packed(both + f, up, column, f, valid);
            }
        }
    }
}
