// What the grouped products of every architecture share: which tile is whose, and where its sums go.
//
// Sums lie in pieces of 16x8 as mma_bf16 and wgmma leave them: with g = lane / 4 and q = lane % 4 a lane holds row g,
// columns 2q and 2q + 1, then row g + 8.
#pragma once

#include "mma.cuh"

namespace {

__device__ __forceinline__ int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Finds tiles of M rows among experts. Each warp keeps its own, 32 experts at a time; tiles are asked for in rising
// order. Expert `num_experts` stands for the rows behind the last offset.
template <int M> struct TileWalk {
    static constexpr int BAND = 8;
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
            int tiles = ceil_div(end_e - begin_e, M) * n_tiles;
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
        int m_tiles = ceil_div(end - begin, M);
        int first = within / (BAND * n_tiles) * BAND;
        int height = min(BAND, m_tiles - first);
        within -= first * n_tiles;
        m = begin + (first + within % height) * M;
        n = within / height;
    }

    __device__ __forceinline__ bool is_padding() const { return expert == num_experts; }
};

// Stores 32 columns from `column` of one row, of which this lane holds two in each of four pieces.
__device__ __forceinline__ void store_packed(bf16 *row, u32 (&words)[4], int column, int width, bool valid) {
    transpose_quad(words);
    column += threadIdx.x % 4 * 8;
    if (valid && column < width) store_16_bytes(row + column, make_uint4(words[0], words[1], words[2], words[3]));
}

__device__ __forceinline__ void store_32(bf16 *row, const float2 (&values)[4], int column, int width, bool valid) {
    u32 words[4];
#pragma unroll
    for (int n = 0; n < 4; n++) words[n] = pack_bf16(values[n].x, values[n].y);
    store_packed(row, words, column, width, valid);
}

__device__ __forceinline__ void store_32(float *row, const float2 (&values)[4], int column, int width, bool valid) {
    column += threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < 4; n++) {
        if (valid && column + n * 8 < width) *reinterpret_cast<float2 *>(row + column + n * 8) = values[n];
    }
}

__device__ __forceinline__ float2 load_pair(const bf16 *at) { return unpack_bf16(*reinterpret_cast<const u32 *>(at)); }
__device__ __forceinline__ float2 load_pair(const float *at) { return *reinterpret_cast<const float2 *>(at); }

// Adds what is stored to the sums that will replace it. Where eight pieces lie inside, their loads are under way together;
// a row behind the end adds the last one, and is not stored.
template <int PIECES, class Out>
__device__ __forceinline__ void add_stored(const Out *out, float (&sums)[PIECES][4], int row, int end, int column,
                                           int width) {
    constexpr int BATCH = 8;
    column += threadIdx.x % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; half++, row += 8) {
#pragma unroll
        for (int first = 0; first < PIECES; first += BATCH) {
            const Out *from = out + i64(min(row, end - 1)) * width + column + first * 8;
            bool whole = column + (first + BATCH) * 8 <= width;
#pragma unroll
            for (int n = 0; n < BATCH; n++) {
                if (!whole && column + (first + n) * 8 >= width) continue;
                float2 old = load_pair(from + n * 8);
                sums[first + n][half * 2] += old.x;
                sums[first + n][half * 2 + 1] += old.y;
            }
            column = opaque_after(column, sums[first][half * 2]);
        }
    }
}

// Stores this lane's part of neighbouring pieces from `column`: rows `row` and row + 8, below `end`.
template <int PIECES, class Out>
__device__ __forceinline__ void store_pieces(Out *out, float (&sums)[PIECES][4], int row, int end, int column, int width,
                                             bool accumulate) {
    if (accumulate) add_stored(out, sums, row, end, column, width);
#pragma unroll
    for (int half = 0; half < 2; half++, row += 8) {
#pragma unroll
        for (int part = 0; part < PIECES / 4; part++) {
            float2 values[4];
#pragma unroll
            for (int n = 0; n < 4; n++) {
                const float *pair = sums[part * 4 + n] + half * 2;
                values[n] = make_float2(pair[0], pair[1]);
            }
            store_32(out + i64(row) * width, values, column + part * 32, width, row < end);
        }
    }
}

// silu(gate)·up·weight of two neighbouring columns.
__device__ __forceinline__ u32 swiglu(u32 gate, u32 up, float weight) {
    float2 g = unpack_bf16(gate), u = unpack_bf16(up);
    return pack_bf16(u.x * (g.x * sigmoid(g.x) * weight), u.y * (g.y * sigmoid(g.y) * weight));
}

// For SwiGLU each 64 columns of a product are 32 of gate and the same 32 of up, so that each lane holds both factors of
// its products. The row of w_2fi, gate first, for column `column` of a tile that begins at `first` of f; -1 behind f.
__device__ __forceinline__ int gate_up_row(int first, int column, int f) {
    int of_f = first + column / 64 * 32 + column % 32;
    return of_f >= f ? -1 : column % 64 < 32 ? of_f : f + of_f;
}

// As store_pieces, h = silu(gate)·up·weight from `column` of f, and the two factors where `gate_up` is not null. h is
// computed from their rounded values, as swiglu.cu does from what is stored: the same bits.
template <int PIECES>
__device__ __forceinline__ void store_swiglu(bf16 *h, bf16 *gate_up, const float *weights,
                                             const float (&sums)[PIECES][4], int row, int end, int column, int f) {
#pragma unroll
    for (int half = 0; half < 2; half++, row += 8) {
        bool valid = row < end;
        float weight = valid && weights ? weights[row] : 1.0f;
#pragma unroll
        for (int part = 0; part < PIECES / 8; part++) {
            u32 gate[4], up[4], product[4];
#pragma unroll
            for (int n = 0; n < 4; n++) {
                const float *g = sums[part * 8 + n] + half * 2, *u = sums[part * 8 + 4 + n] + half * 2;
                gate[n] = pack_bf16(g[0], g[1]);
                up[n] = pack_bf16(u[0], u[1]);
                product[n] = swiglu(gate[n], up[n], weight);
            }
            int at = column + part * 32;
            store_packed(h + i64(row) * f, product, at, f, valid);
            if (gate_up) {
                bf16 *both = gate_up + i64(row) * 2 * f;
                store_packed(both, gate, at, f, valid);
                store_packed(both + f, up, at, f, valid);
            }
        }
    }
}

} // namespace
