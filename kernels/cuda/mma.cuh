// Tensor cores and asynchronous copies of sm_80 and later: one function an instruction.
//
// On a GPU each body is the instruction. On the host each does what the PTX manual says of it, lane by lane, so that a
// fragment held by the wrong lane, a swizzle that is not undone, or a stage read before its copy was waited for gives
// wrong numbers there too. Source: PTX ISA, sections on mma.m16n8k16, ldmatrix and cp.async.
#pragma once

#include "common.cuh"

// Four 8x8 matrices of 16-bit elements, or a piece of one: two elements a word, the lower index in the low half.
struct Fragment4 {
    unsigned word[4];
};

#ifndef WATTLE_HOST

// Shared memory as its instructions address it.
typedef unsigned SharedAddress;

__device__ __forceinline__ SharedAddress shared_address(const void *pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// Loads four 8x8 matrices. Lane l gives the address of row l % 8 of matrix l / 8, 16 bytes, and receives of each matrix
// the elements 2·(l % 4) and the next of row l / 4.
__device__ __forceinline__ Fragment4 ldmatrix(SharedAddress row) {
    Fragment4 f;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(f.word[0]), "=r"(f.word[1]), "=r"(f.word[2]), "=r"(f.word[3])
                 : "r"(row)
                 : "memory");
    return f;
}

// As ldmatrix, each matrix transposed: lane l receives the elements l / 4 of rows 2·(l % 4) and the next.
__device__ __forceinline__ Fragment4 ldmatrix_transposed(SharedAddress row) {
    Fragment4 f;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(f.word[0]), "=r"(f.word[1]), "=r"(f.word[2]), "=r"(f.word[3])
                 : "r"(row)
                 : "memory");
    return f;
}

// c += a·b with a of 16x16 and b of 16x8 in bf16, c of 16x8 in f32. With g = lane / 4 and q = lane % 4:
// a holds rows g, g + 8, g, g + 8 at columns 2q, 2q, 2q + 8, 2q + 8; b holds rows 2q and 2q + 8 of column g;
// c holds row g, columns 2q and 2q + 1, then row g + 8.
__device__ __forceinline__ void mma_bf16(float (&c)[4], const Fragment4 &a, unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b0), "r"(b1));
}

// Begins to copy 16 bytes to shared memory, past L1; writes zeros, and reads nothing, where `valid` is false.
__device__ __forceinline__ void copy_async(SharedAddress to, const void *from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

// As copy_async, 4 bytes.
__device__ __forceinline__ void copy_async_4(SharedAddress to, const void *from, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)),
                 "r"(valid ? 4 : 0)
                 : "memory");
}

// Makes one group of this thread's copies since the last group.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the latest PENDING groups of this thread are still under way.
template <int PENDING> __device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// x, of which the compiler knows nothing: what is computed from it in a loop stays there, and takes no register around it.
__device__ __forceinline__ unsigned opaque(unsigned x) {
    asm volatile("" : "+r"(x));
    return x;
}

// As opaque, and only known when `y` is: what is computed from it begins no earlier.
__device__ __forceinline__ unsigned opaque_after(unsigned x, float &y) {
    asm volatile("" : "+r"(x), "+f"(y));
    return x;
}

// 2^x to 2 units in the last place, 0 below the normal range.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#else

#include <cmath>
#include <cstring>
#include <deque>

typedef unsigned long long SharedAddress;

static inline SharedAddress shared_address(const void *pointer) { return reinterpret_cast<SharedAddress>(pointer); }

namespace host {

struct MatrixLoad {
    SharedAddress address;
    Fragment4 row, result;
};

static inline unsigned short half_of(const Fragment4 &f, unsigned element) {
    return static_cast<unsigned short>(f.word[element / 2] >> (element % 2 * 16));
}

// The row is read before the lanes meet: a lane that runs ahead must not change what the others load.
static inline MatrixLoad read_row(const char *what, SharedAddress address) {
    if (address % 16) fail("%s: address %llx is not a multiple of 16", what, address);
    MatrixLoad load{};
    load.address = address;
    memcpy(&load.row, reinterpret_cast<const void *>(address), sizeof load.row);
    return load;
}

// Shared memory answers eight rows at once only where they lie in eight different groups of four banks. No kernel here
// loads otherwise, so a wrong swizzle ends the launch.
static inline void expect_no_bank_conflict(MatrixLoad **lanes) {
    for (unsigned m = 0; m < 4; m++) {
        unsigned groups = 0;
        for (unsigned row = 0; row < 8; row++) groups |= 1u << lanes[m * 8 + row]->address / 16 % 8;
        if (groups != 0xff) fail("ldmatrix: the rows of matrix %u share banks", m);
    }
}

static inline void complete_ldmatrix(MatrixLoad **lanes, unsigned) {
    expect_no_bank_conflict(lanes);
    for (unsigned lane = 0; lane < 32; lane++) {
        for (unsigned m = 0; m < 4; m++) {
            lanes[lane]->result.word[m] = lanes[m * 8 + lane / 4]->row.word[lane % 4];
        }
    }
}

static inline void complete_ldmatrix_transposed(MatrixLoad **lanes, unsigned) {
    expect_no_bank_conflict(lanes);
    for (unsigned lane = 0; lane < 32; lane++) {
        for (unsigned m = 0; m < 4; m++) {
            unsigned low = half_of(lanes[m * 8 + lane % 4 * 2]->row, lane / 4);
            unsigned high = half_of(lanes[m * 8 + lane % 4 * 2 + 1]->row, lane / 4);
            lanes[lane]->result.word[m] = low | high << 16;
        }
    }
}

struct Mma {
    float *c;
    Fragment4 a;
    unsigned b[2];
};

static inline float bf16_value(unsigned word, unsigned half) {
    return half ? high_to_float(word) : low_to_float(word);
}

// Four sums side by side: the test's time goes here.
typedef float Floats4 __attribute__((vector_size(16)));

static inline void complete_mma(Mma **lanes, unsigned) {
    alignas(16) float a[16][16], b[16][8], c[16][8];
    for (unsigned lane = 0; lane < WARP; lane++) {
        unsigned g = lane / 4, q = lane % 4;
        for (unsigned half = 0; half < 2; half++) {
            for (unsigned i = 0; i < 4; i++) {
                a[g + i % 2 * 8][2 * q + half + i / 2 * 8] = bf16_value(lanes[lane]->a.word[i], half);
            }
            for (unsigned i = 0; i < 2; i++) b[2 * q + half + i * 8][g] = bf16_value(lanes[lane]->b[i], half);
        }
        for (unsigned i = 0; i < 4; i++) c[g + i / 2 * 8][q * 2 + i % 2] = lanes[lane]->c[i];
    }
    for (unsigned row = 0; row < 16; row++) {
        Floats4 *sums = reinterpret_cast<Floats4 *>(c[row]);
        for (unsigned k = 0; k < 16; k++) {
            const Floats4 *of_b = reinterpret_cast<const Floats4 *>(b[k]);
            sums[0] += a[row][k] * of_b[0];
            sums[1] += a[row][k] * of_b[1];
        }
    }
    for (unsigned lane = 0; lane < WARP; lane++) {
        for (unsigned i = 0; i < 4; i++) lanes[lane]->c[i] = c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    }
}

struct Copy {
    SharedAddress to;
    const void *from;
    unsigned bytes;
    bool valid;
};

// The copies of one thread that are still under way, in groups; the last is open.
struct CopyQueue {
    std::deque<std::vector<Copy>> groups{1};
    unsigned count = 0;
};

static CopyQueue copy_queues[MAX_BLOCK_THREADS];
// For each 16 bytes of shared memory the thread that copied there and has not called fence_proxy_async since, plus one:
// wgmma must not read them.
static unsigned short unfenced_by[MAX_SHARED_BYTES / 16];

static inline SharedAddress shared_base() { return reinterpret_cast<SharedAddress>(shared_memory); }

static inline void land(const Copy &copy) {
    if (copy.valid) {
        memcpy(reinterpret_cast<void *>(copy.to), copy.from, copy.bytes);
    } else {
        memset(reinterpret_cast<void *>(copy.to), 0, copy.bytes);
    }
    SharedAddress chunk = (copy.to - shared_base()) / 16;
    if (chunk >= MAX_SHARED_BYTES / 16) fail("copy_async to %llx, which is no shared memory", copy.to);
    unfenced_by[chunk] = static_cast<unsigned short>(current->number + 1);
}

// Hardware may land a copy at any time between its issue and the end of the wait for it. Every other copy of a thread
// lands at once and every other at the wait, so that both a stage overwritten too early and one read too early show.
static inline void start_copy(const Copy &copy) {
    if (copy.to % copy.bytes || (copy.valid && reinterpret_cast<unsigned long long>(copy.from) % copy.bytes)) {
        fail("copy_async of %u bytes from %p to %llx, which is not aligned", copy.bytes, copy.from, copy.to);
    }
    CopyQueue &queue = copy_queues[current->number];
    if (queue.count++ % 2) {
        land(copy);
    } else {
        queue.groups.back().push_back(copy);
    }
}

} // namespace host

static inline Fragment4 ldmatrix(SharedAddress row) {
    host::MatrixLoad load = host::read_row("ldmatrix", row);
    host::warp_operation("ldmatrix", 0xffffffffu, load, host::complete_ldmatrix);
    return load.result;
}

static inline Fragment4 ldmatrix_transposed(SharedAddress row) {
    host::MatrixLoad load = host::read_row("ldmatrix_transposed", row);
    host::warp_operation("ldmatrix_transposed", 0xffffffffu, load, host::complete_ldmatrix_transposed);
    return load.result;
}

static inline void mma_bf16(float (&c)[4], const Fragment4 &a, unsigned b0, unsigned b1) {
    host::Mma mma{c, a, {b0, b1}};
    host::warp_operation("mma_bf16", 0xffffffffu, mma, host::complete_mma);
}

static inline void copy_async(SharedAddress to, const void *from, bool valid) {
    host::start_copy({to, from, 16, valid});
}

static inline void copy_async_4(SharedAddress to, const void *from, bool valid) {
    host::start_copy({to, from, 4, valid});
}

static inline void commit_copies() { host::copy_queues[host::current->number].groups.emplace_back(); }

template <int PENDING> static inline void wait_copies() {
    auto &groups = host::copy_queues[host::current->number].groups;
    while (groups.size() > PENDING + 1) {
        for (const host::Copy &copy : groups.front()) host::land(copy);
        groups.pop_front();
    }
}

static inline unsigned opaque(unsigned x) { return x; }
static inline unsigned opaque_after(unsigned x, float &) { return x; }

static inline float exp2_fast(float x) {
    float y = exp2f(x);
    return y < 1.17549435e-38f ? 0.0f : y;
}

#endif

// The two values of a word of bf16.
__device__ __forceinline__ float2 unpack_bf16(unsigned packed) {
    return make_float2(low_to_float(packed), high_to_float(packed));
}

// Where 16-byte chunk `chunk` of row `row` lies in a tile of rows of CHUNKS chunks, in bytes. Chunks are exchanged within
// a row so that the same chunk of eight rows in a column, which one ldmatrix reads, lies in eight different banks.
template <int CHUNKS> __device__ __forceinline__ unsigned swizzled(unsigned row, unsigned chunk) {
    static_assert(CHUNKS % 4 == 0, "the exchange stays within four chunks");
    unsigned exchange = CHUNKS % 8 == 0 ? row & 7 : row >> 1 & 3;
    return (row * CHUNKS + (chunk ^ exchange)) * 16;
}

// Exchanges words among the four lanes of a quad: lane q gives w[i], meant for lane i, and receives in w[i] what lane i
// meant for it.
__device__ __forceinline__ void transpose_quad(unsigned (&w)[4]) {
    unsigned lane = threadIdx.x & 3;
#pragma unroll
    for (unsigned bit = 1; bit <= 2; bit *= 2) {
        bool upper = lane & bit;
#pragma unroll
        for (unsigned pair = 0; pair < 2; pair++) {
            unsigned low = bit == 1 ? pair * 2 : pair, high = low + bit;
            unsigned received = __shfl_xor_sync(0xffffffffu, upper ? w[low] : w[high], bit);
            w[low] = upper ? received : w[low];
            w[high] = upper ? w[high] : received;
        }
    }
}
