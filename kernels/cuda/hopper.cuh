// What only sm_90a has: matrix products of four warps on shared memory (wgmma), barriers in shared memory, and registers
// handed from one warpgroup to another. One function an instruction, as in mma.cuh.
//
// Source: PTX ISA, sections on wgmma, its shared memory layouts and matrix descriptor, mbarrier, setmaxnreg and proxies.
#pragma once

#include "mma.cuh"

// An operand of wgmma in shared memory, 16 deep, in the layout with swizzle over 128 bytes: atoms of 8 rows of 128 bytes,
// aligned to 1024 bytes, their 16-byte chunks exchanged as swizzled<8> does. `start` is where its first atom or, within an
// atom, its first 16 bytes lie.
//   row operand: a row is 64 consecutive k; `rows_apart` bytes lie between atoms of eight rows and the next eight.
//   column operand: a row is 64 consecutive columns of one k; `rows_apart` lie between eight k and the next eight,
//   `columns_apart` between 64 columns and the next 64.
struct MatrixDescriptor {
    u64 bits;
};

__device__ __forceinline__ MatrixDescriptor matrix_descriptor(u32 start, u32 rows_apart, u32 columns_apart) {
    const u64 swizzle_128 = 1;
    return {u64(start & 0x3ffff) >> 4 | u64(columns_apart >> 4) << 16 | u64(rows_apart >> 4) << 32 | swizzle_128 << 62};
}

// The 64x256 sums of a warpgroup: warp w of it holds rows 16·w..16·w + 16 as 32 pieces of 16x8, each as mma_bf16 has it.
typedef float WarpgroupSums[32][4];

#ifndef WATTLE_HOST

// Where a matrix lies, for its descriptor.
__device__ __forceinline__ u32 descriptor_address(SharedAddress address) { return address; }

// d += a·b: a of 64x16, b of 16x256. Begins the product; the sums and shared memory are in use until it was waited for.
template <bool A_IS_COLUMNS, bool B_IS_COLUMNS>
__device__ __forceinline__ void wgmma_64x256(WarpgroupSums &d, MatrixDescriptor a, MatrixDescriptor b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, "
        "%11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, "
        "%31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, "
        "%51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, "
        "%71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, "
        "%91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, "
        "%109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, "
        "%125, %126, %127}, %128, %129, 1, 1, 1, %130, %131;"
        : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]),
          "+f"(d[1][3]), "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]), "+f"(d[3][0]), "+f"(d[3][1]),
          "+f"(d[3][2]), "+f"(d[3][3]), "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]),
          "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]), "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]),
          "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3]), "+f"(d[8][0]), "+f"(d[8][1]), "+f"(d[8][2]),
          "+f"(d[8][3]), "+f"(d[9][0]), "+f"(d[9][1]), "+f"(d[9][2]), "+f"(d[9][3]), "+f"(d[10][0]), "+f"(d[10][1]),
          "+f"(d[10][2]), "+f"(d[10][3]), "+f"(d[11][0]), "+f"(d[11][1]), "+f"(d[11][2]), "+f"(d[11][3]),
          "+f"(d[12][0]), "+f"(d[12][1]), "+f"(d[12][2]), "+f"(d[12][3]), "+f"(d[13][0]), "+f"(d[13][1]),
          "+f"(d[13][2]), "+f"(d[13][3]), "+f"(d[14][0]), "+f"(d[14][1]), "+f"(d[14][2]), "+f"(d[14][3]),
          "+f"(d[15][0]), "+f"(d[15][1]), "+f"(d[15][2]), "+f"(d[15][3]), "+f"(d[16][0]), "+f"(d[16][1]),
          "+f"(d[16][2]), "+f"(d[16][3]), "+f"(d[17][0]), "+f"(d[17][1]), "+f"(d[17][2]), "+f"(d[17][3]),
          "+f"(d[18][0]), "+f"(d[18][1]), "+f"(d[18][2]), "+f"(d[18][3]), "+f"(d[19][0]), "+f"(d[19][1]),
          "+f"(d[19][2]), "+f"(d[19][3]), "+f"(d[20][0]), "+f"(d[20][1]), "+f"(d[20][2]), "+f"(d[20][3]),
          "+f"(d[21][0]), "+f"(d[21][1]), "+f"(d[21][2]), "+f"(d[21][3]), "+f"(d[22][0]), "+f"(d[22][1]),
          "+f"(d[22][2]), "+f"(d[22][3]), "+f"(d[23][0]), "+f"(d[23][1]), "+f"(d[23][2]), "+f"(d[23][3]),
          "+f"(d[24][0]), "+f"(d[24][1]), "+f"(d[24][2]), "+f"(d[24][3]), "+f"(d[25][0]), "+f"(d[25][1]),
          "+f"(d[25][2]), "+f"(d[25][3]), "+f"(d[26][0]), "+f"(d[26][1]), "+f"(d[26][2]), "+f"(d[26][3]),
          "+f"(d[27][0]), "+f"(d[27][1]), "+f"(d[27][2]), "+f"(d[27][3]), "+f"(d[28][0]), "+f"(d[28][1]),
          "+f"(d[28][2]), "+f"(d[28][3]), "+f"(d[29][0]), "+f"(d[29][1]), "+f"(d[29][2]), "+f"(d[29][3]),
          "+f"(d[30][0]), "+f"(d[30][1]), "+f"(d[30][2]), "+f"(d[30][3]), "+f"(d[31][0]), "+f"(d[31][1]),
          "+f"(d[31][2]), "+f"(d[31][3])
        : "l"(a.bits), "l"(b.bits), "n"(A_IS_COLUMNS), "n"(B_IS_COLUMNS)
        : "memory");
}

// Orders what was done to registers and shared memory before the products that follow.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Makes one group of the products since the last group.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most the latest PENDING groups are still under way. The sums are named, so that no use of them moves in
// front of the wait.
template <int PENDING> __device__ __forceinline__ void wgmma_wait(WarpgroupSums &d) {
    asm volatile(
        "wgmma.wait_group.sync.aligned %128;"
        : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]),
          "+f"(d[1][3]), "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]), "+f"(d[3][0]), "+f"(d[3][1]),
          "+f"(d[3][2]), "+f"(d[3][3]), "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]),
          "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]), "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]),
          "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3]), "+f"(d[8][0]), "+f"(d[8][1]), "+f"(d[8][2]),
          "+f"(d[8][3]), "+f"(d[9][0]), "+f"(d[9][1]), "+f"(d[9][2]), "+f"(d[9][3]), "+f"(d[10][0]), "+f"(d[10][1]),
          "+f"(d[10][2]), "+f"(d[10][3]), "+f"(d[11][0]), "+f"(d[11][1]), "+f"(d[11][2]), "+f"(d[11][3]),
          "+f"(d[12][0]), "+f"(d[12][1]), "+f"(d[12][2]), "+f"(d[12][3]), "+f"(d[13][0]), "+f"(d[13][1]),
          "+f"(d[13][2]), "+f"(d[13][3]), "+f"(d[14][0]), "+f"(d[14][1]), "+f"(d[14][2]), "+f"(d[14][3]),
          "+f"(d[15][0]), "+f"(d[15][1]), "+f"(d[15][2]), "+f"(d[15][3]), "+f"(d[16][0]), "+f"(d[16][1]),
          "+f"(d[16][2]), "+f"(d[16][3]), "+f"(d[17][0]), "+f"(d[17][1]), "+f"(d[17][2]), "+f"(d[17][3]),
          "+f"(d[18][0]), "+f"(d[18][1]), "+f"(d[18][2]), "+f"(d[18][3]), "+f"(d[19][0]), "+f"(d[19][1]),
          "+f"(d[19][2]), "+f"(d[19][3]), "+f"(d[20][0]), "+f"(d[20][1]), "+f"(d[20][2]), "+f"(d[20][3]),
          "+f"(d[21][0]), "+f"(d[21][1]), "+f"(d[21][2]), "+f"(d[21][3]), "+f"(d[22][0]), "+f"(d[22][1]),
          "+f"(d[22][2]), "+f"(d[22][3]), "+f"(d[23][0]), "+f"(d[23][1]), "+f"(d[23][2]), "+f"(d[23][3]),
          "+f"(d[24][0]), "+f"(d[24][1]), "+f"(d[24][2]), "+f"(d[24][3]), "+f"(d[25][0]), "+f"(d[25][1]),
          "+f"(d[25][2]), "+f"(d[25][3]), "+f"(d[26][0]), "+f"(d[26][1]), "+f"(d[26][2]), "+f"(d[26][3]),
          "+f"(d[27][0]), "+f"(d[27][1]), "+f"(d[27][2]), "+f"(d[27][3]), "+f"(d[28][0]), "+f"(d[28][1]),
          "+f"(d[28][2]), "+f"(d[28][3]), "+f"(d[29][0]), "+f"(d[29][1]), "+f"(d[29][2]), "+f"(d[29][3]),
          "+f"(d[30][0]), "+f"(d[30][1]), "+f"(d[30][2]), "+f"(d[30][3]), "+f"(d[31][0]), "+f"(d[31][1]),
          "+f"(d[31][2]), "+f"(d[31][3])
        : "n"(PENDING)
        : "memory");
}

// Lets wgmma see what this thread wrote to shared memory.
__device__ __forceinline__ void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A barrier in shared memory, 8 bytes, whose phase ends when `count` threads have arrived.
__device__ __forceinline__ void barrier_init(SharedAddress barrier, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

__device__ __forceinline__ void barrier_arrive(SharedAddress barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Waits until the phase of this parity has ended; the first phase has parity 0, and the one before it has ended.
__device__ __forceinline__ void barrier_wait(SharedAddress barrier, u32 parity) {
    u32 ended;
    do {
        asm volatile("{\n"
                     ".reg .pred ended;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, ended;\n"
                     "}"
                     : "=r"(ended)
                     : "r"(barrier), "r"(parity)
                     : "memory");
    } while (!ended);
}

// The calling warpgroup gives registers back, or takes them, until each of its threads has COUNT.
template <int COUNT> __device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT> __device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

#else

static inline u32 descriptor_address(SharedAddress address) { return u32(address - host::shared_base()); }

namespace host {

struct Wgmma {
    float (*d)[4];
    u64 a, b;
    bool a_is_columns, b_is_columns;
};

// The products of one thread that are still under way, in groups; the last is open.
struct WgmmaQueue {
    std::deque<std::vector<Wgmma>> groups{1};
    unsigned count = 0;
};

static WgmmaQueue wgmma_queues[MAX_BLOCK_THREADS];

// Eight neighbours of an operand, 16 bytes: k..k + 8 of row `at`, or columns at..at + 8 of one k. Unknown bits of a
// descriptor, and memory that was not fenced, are errors.
static inline const bf16 *operand_chunk(u64 descriptor, bool is_columns, unsigned at, unsigned k) {
    const u64 known = 0x3fffull | 0x3fffull << 16 | 0x3fffull << 32 | 3ull << 62;
    if (descriptor & ~known || descriptor >> 62 != 1) fail("wgmma: descriptor %llx", descriptor);
    u64 start = (descriptor & 0x3fff) << 4;
    u64 columns_apart = (descriptor >> 16 & 0x3fff) << 4, rows_apart = (descriptor >> 32 & 0x3fff) << 4;
    u64 place = start + (is_columns ? at / 64 * columns_apart + at % 64 * 2 + k / 8 * rows_apart + k % 8 * 128
                                    : at / 8 * rows_apart + at % 8 * 128 + k * 2);
    place ^= (place >> 7 & 7) << 4;
    if (place >= MAX_SHARED_BYTES) fail("wgmma reads behind shared memory, at %llu", place);
    if (unfenced_by[place / 16]) fail("wgmma reads what thread %d wrote without a fence", unfenced_by[place / 16] - 1);
    return reinterpret_cast<const bf16 *>(shared_memory + place);
}

// Writes the `count` rows or columns of an operand from `first` on to `to`, count of them for each k.
static inline void read_operand(u64 descriptor, bool is_columns, unsigned first, unsigned count, float *to) {
    for (unsigned k = 0; k < 16; k += is_columns ? 1 : 8) {
        for (unsigned at = 0; at < count; at += is_columns ? 8 : 1) {
            const bf16 *chunk = operand_chunk(descriptor, is_columns, first + at, k);
            float *corner = to + k * count + at;
            for (unsigned i = 0; i < 8; i++) corner[i * (is_columns ? 1 : count)] = to_float(chunk[i]);
        }
    }
}

static inline void complete_wgmma(Wgmma **lanes, unsigned) {
    const Wgmma &first = *lanes[0];
    for (unsigned lane = 0; lane < WARP; lane++) {
        if (lanes[lane]->a != first.a || lanes[lane]->b != first.b) fail("wgmma: lane %u has other matrices", lane);
    }
    alignas(16) static float a[16 * 16], b[16 * 256], sums[256];
    read_operand(first.a, first.a_is_columns, current->number / WARP % 4 * 16, 16, a);
    read_operand(first.b, first.b_is_columns, 0, 256, b);
    for (unsigned row = 0; row < 16; row++) {
        Floats4 *of_sums = reinterpret_cast<Floats4 *>(sums);
        const Floats4 *of_b = reinterpret_cast<const Floats4 *>(b);
        memset(sums, 0, sizeof sums);
        for (unsigned k = 0; k < 16; k++) {
            float factor = a[k * 16 + row];
            for (unsigned n = 0; n < 64; n++) of_sums[n] += factor * *of_b++;
        }
        for (unsigned column = 0; column < 256; column++) {
            const Wgmma &lane = *lanes[row % 8 * 4 + column % 8 / 2];
            lane.d[column / 8][row / 8 * 2 + column % 2] += sums[column];
        }
    }
}

static inline void run_wgmma(Wgmma &wgmma) { warp_operation("wgmma", 0xffffffffu, wgmma, complete_wgmma); }

// As mbarrier, but with its fields in the open.
struct SharedBarrier {
    u16 count, pending;
    u32 phase;
};

static inline SharedBarrier &shared_barrier(SharedAddress barrier) {
    if (barrier % 8) fail("a barrier at %llx, which is not aligned", barrier);
    return *reinterpret_cast<SharedBarrier *>(barrier);
}

struct PhaseEnd {
    SharedAddress barrier;
    u32 parity;
};

} // namespace host

// Every other product of a thread runs at once and every other at the wait, so that both operands that are not there yet
// and stages or sums that are used too early show.
template <bool A_IS_COLUMNS, bool B_IS_COLUMNS>
static inline void wgmma_64x256(WarpgroupSums &d, MatrixDescriptor a, MatrixDescriptor b) {
    host::WgmmaQueue &queue = host::wgmma_queues[host::current->number];
    host::Wgmma wgmma{d, a.bits, b.bits, A_IS_COLUMNS, B_IS_COLUMNS};
    if (queue.count++ % 2) {
        host::run_wgmma(wgmma);
    } else {
        queue.groups.back().push_back(wgmma);
    }
}

static inline void wgmma_fence() {}

static inline void wgmma_commit() { host::wgmma_queues[host::current->number].groups.emplace_back(); }

template <int PENDING> static inline void wgmma_wait(WarpgroupSums &) {
    auto &groups = host::wgmma_queues[host::current->number].groups;
    while (groups.size() > PENDING + 1) {
        for (host::Wgmma &wgmma : groups.front()) host::run_wgmma(wgmma);
        groups.pop_front();
    }
}

static inline void fence_proxy_async() {
    for (unsigned short &thread : host::unfenced_by) {
        if (thread == host::current->number + 1) thread = 0;
    }
}

static inline void barrier_init(SharedAddress barrier, u32 count) {
    host::shared_barrier(barrier) = {u16(count), u16(count), 0};
}

static inline void barrier_arrive(SharedAddress barrier) {
    host::SharedBarrier &b = host::shared_barrier(barrier);
    if (b.count == 0 || b.count == 0xffff) host::fail("a barrier that nobody initialised");
    if (--b.pending == 0) {
        b.pending = b.count;
        b.phase++;
    }
}

static inline void barrier_wait(SharedAddress barrier, u32 parity) {
    host::PhaseEnd end{barrier, parity};
    auto has_ended = [](const void *watched) {
        const auto *end = static_cast<const host::PhaseEnd *>(watched);
        return (host::shared_barrier(end->barrier).phase & 1) != end->parity;
    };
    host::wait_until("barrier_wait", has_ended, &end);
}

template <int COUNT> static inline void give_registers() {}
template <int COUNT> static inline void take_registers() {}

#endif
