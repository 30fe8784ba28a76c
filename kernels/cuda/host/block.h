// One block at a time: its threads as fibers, the places where they wait for each other, and the launch of a grid.
//
// A thread that waits for one that will never come, lanes of a warp that meet at different operations, a barrier that
// threads reach at different lines, a write behind the end of dynamic shared memory: each ends the launch with a
// message, never with a hang. Shared memory is filled with 0xff (NaN, -1) before each block, so that reading what
// nobody wrote shows in the result.
#pragma once

#include "fiber.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace host {

struct Index {
    unsigned x, y, z;
};

// What a launch is given, laid out as the Rust side has it.
struct Launch {
    Index grid;
    Index block;
    unsigned shared_bytes;
    // Blocks and threads take their turns from the last to the first: the result must be the same.
    unsigned reversed;
};

static constexpr unsigned WARP = 32;
static constexpr unsigned MAX_BLOCK_THREADS = 1024;
// What a block of sm_90 can ask for, 227 KiB.
static constexpr unsigned MAX_SHARED_BYTES = 232448;
static constexpr unsigned NUM_BARRIERS = 16;
static constexpr unsigned GUARD_BYTES = 1024;

// Called by the last lane to arrive, with the arguments of all lanes of the mask: lanes[i] is null outside it.
using Complete = void (*)(void **lanes, unsigned mask);

struct Fiber {
    Context context;
    Index index;
    unsigned number;
    bool done;
    bool blocked;
    // Where it waits, for messages.
    const char *at;
    int line;
    // The warp operation it is in, if any.
    Complete complete;
    unsigned mask;
    void *arguments;
    // Asked on each turn, if there is one, whether the thread can go on.
    bool (*can_go_on)(const void *);
    const void *watched;
};

struct Barrier {
    unsigned arrived, wanted;
    int line;
    std::vector<Fiber *> waiting;
    // Of __syncthreads_or, _and and _count: threads whose predicate was true, now and in the round that just ended.
    unsigned votes, result;
};

// The operation that lanes of a warp wait in, as the last of them to look around found it.
struct Meeting {
    Complete complete;
    unsigned mask;
    int arrived;
};

static Index thread_index, block_index, block_dim, grid_dim;
static Stacks stacks;
static std::vector<Fiber> fibers;
static Barrier barriers[NUM_BARRIERS];
static Meeting meetings[MAX_BLOCK_THREADS / WARP];
static Context scheduler;
static Fiber *current;
static std::string error;
static void (*body)();
alignas(1024) static unsigned char shared_memory[MAX_SHARED_BYTES + GUARD_BYTES];

// Static shared memory lies in a section of its own.
extern "C" unsigned char __start_wattle_shared[] __attribute__((weak, visibility("hidden")));
extern "C" unsigned char __stop_wattle_shared[] __attribute__((weak, visibility("hidden")));

static void leave() { switch_context(current->context, scheduler); }

// Ends the launch with a message. Does not return to the kernel.
__attribute__((format(printf, 1, 2))) [[noreturn, maybe_unused]] static void fail(const char *format, ...) {
    char text[512];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    char place[160];
    snprintf(place, sizeof place, " (block %u,%u,%u thread %u,%u,%u)", block_index.x, block_index.y, block_index.z,
             current->index.x, current->index.y, current->index.z);
    error = std::string(text) + place;
    leave();
    abort(); // the scheduler never comes back to a launch that failed
}

// Where the compiler's own checks (-fsanitize=bounds,alignment) found something.
struct CheckedPlace {
    const char *file;
    unsigned line, column;
};

static void block_here(const char *at, int line) {
    current->blocked = true;
    current->at = at;
    current->line = line;
    leave();
}

// Waits until `can_go_on(watched)`: for waiting on memory that another thread of the block will change.
[[maybe_unused]] static void wait_until(const char *at, bool (*can_go_on)(const void *), const void *watched,
                                        int line = __builtin_LINE()) {
    if (can_go_on(watched)) return;
    current->can_go_on = can_go_on;
    current->watched = watched;
    block_here(at, line);
}

// All lanes of `mask` meet; the last one to come runs `complete` on everybody's arguments. The arguments of a lane stay
// where they are until it goes on, so `complete` may write results into them.
static void meet(const char *at, unsigned mask, void *arguments, Complete complete, int line) {
    Fiber &me = *current;
    unsigned lane = me.number % WARP;
    size_t first = me.number - lane;
    if (!(mask >> lane & 1)) fail("%s at line %d: the lane is not in its own mask %08x", at, line, mask);
    me.complete = complete;
    me.mask = mask;
    me.arguments = arguments;
    me.at = at;
    me.line = line;
    // Only the first lane and the last look around.
    Meeting &meeting = meetings[me.number / WARP];
    bool is_open = meeting.complete == complete && meeting.mask == mask;
    if (is_open && meeting.arrived + 1 < __builtin_popcount(mask)) {
        meeting.arrived++;
        block_here(at, line);
        return;
    }
    void *lanes[WARP] = {};
    bool all_here = true;
    int num_here = 0;
    for (unsigned i = 0; i < WARP; i++) {
        if (!(mask >> i & 1)) continue;
        if (first + i >= fibers.size()) fail("%s at line %d: the block has no lane %u in this warp", at, line, i);
        Fiber &other = fibers[first + i];
        if (other.done) fail("%s at line %d: lane %u has returned", at, line, i);
        if (other.complete == complete && other.mask == mask) {
            lanes[i] = other.arguments;
            num_here++;
        } else if (other.complete && other.mask >> lane & 1) {
            fail("%s at line %d, mask %08x: lane %u is at %s at line %d, mask %08x", at, line, mask, i, other.at,
                 other.line, other.mask);
        } else {
            all_here = false;
        }
    }
    if (!all_here) {
        meeting = {complete, mask, num_here};
        block_here(at, line);
        return;
    }
    meeting = {};
    complete(lanes, mask);
    for (unsigned i = 0; i < WARP; i++) {
        if (!(mask >> i & 1)) continue;
        fibers[first + i].complete = nullptr;
        fibers[first + i].blocked = false;
    }
}

// A warp operation on arguments of one type.
template <class Arguments>
[[maybe_unused]] static void warp_operation(const char *at, unsigned mask, Arguments &mine,
                                            void (*complete)(Arguments **lanes, unsigned mask),
                                            int line = __builtin_LINE()) {
    // The type is lost on the way through `meet` and restored here, the only place that knows it.
    struct Erased {
        Arguments *arguments;
        void (*complete)(Arguments **, unsigned);
    } erased{&mine, complete};
    Complete run = [](void **lanes, unsigned mask) {
        Arguments *typed[WARP] = {};
        void (*complete)(Arguments **, unsigned) = nullptr;
        for (unsigned i = 0; i < WARP; i++) {
            if (!lanes[i]) continue;
            Erased *lane = static_cast<Erased *>(lanes[i]);
            if (complete && complete != lane->complete) fail("the lanes of a warp meet at different operations");
            typed[i] = lane->arguments;
            complete = lane->complete;
        }
        complete(typed, mask);
    };
    meet(at, mask, &erased, run, line);
}

// Barrier `id` of `num_threads` threads; returns how many of them gave a true vote.
[[maybe_unused]] static unsigned barrier(unsigned id, unsigned num_threads, bool vote, const char *at, int line) {
    if (id >= NUM_BARRIERS) fail("%s at line %d: there is no barrier %u", at, line, id);
    Barrier &barrier = barriers[id];
    if (barrier.arrived == 0) {
        barrier.wanted = num_threads;
        barrier.line = line;
        barrier.votes = 0;
    }
    if (barrier.wanted != num_threads || barrier.line != line) {
        fail("%s: barrier %u of %u threads at line %d, other threads are at line %d with %u", at, id, num_threads, line,
             barrier.line, barrier.wanted);
    }
    barrier.arrived++;
    barrier.votes += vote;
    if (barrier.arrived < num_threads) {
        barrier.waiting.push_back(current);
        block_here(at, line);
        return barrier.result;
    }
    for (Fiber *fiber : barrier.waiting) fiber->blocked = false;
    barrier.waiting.clear();
    barrier.arrived = 0;
    barrier.result = barrier.votes;
    return barrier.result;
}

static void fiber_main() {
    body();
    current->done = true;
    leave();
}

// Says where each thread stands when none can go on.
static void report_standstill() {
    std::vector<std::pair<std::string, unsigned>> places;
    for (Fiber &fiber : fibers) {
        std::string place = fiber.done ? "returned" : fiber.at + (" at line " + std::to_string(fiber.line));
        if (places.empty() || places.back().first != place) places.emplace_back(place, 0);
        places.back().second++;
    }
    error = "no thread of block " + std::to_string(block_index.x) + " can go on:";
    for (size_t i = 0; i < places.size() && i < 8; i++) {
        error += (i ? ", then " : " ") + std::to_string(places[i].second) + " threads: " + places[i].first;
    }
}

// Gives each thread of the warp that begins at `first` a turn; false if none could go on.
static bool run_warp(size_t first, bool reversed, size_t &live) {
    size_t count = std::min<size_t>(WARP, fibers.size() - first);
    bool progress = false;
    for (size_t turn = 0; turn < count; turn++) {
        Fiber &fiber = fibers[first + (reversed ? count - 1 - turn : turn)];
        if (fiber.done) continue;
        if (fiber.blocked && fiber.can_go_on && fiber.can_go_on(fiber.watched)) {
            fiber.blocked = false;
            fiber.can_go_on = nullptr;
        }
        if (fiber.blocked) continue;
        progress = true;
        current = &fiber;
        thread_index = fiber.index;
        switch_context(scheduler, fiber.context);
        if (!error.empty()) return false;
        live -= fiber.done;
    }
    return progress;
}

static void run_block(bool reversed) {
    size_t count = fibers.size();
    for (size_t i = 0; i < count; i++) {
        Fiber &fiber = fibers[i];
        unsigned number = unsigned(i);
        Index index{number % block_dim.x, number / block_dim.x % block_dim.y, number / block_dim.x / block_dim.y};
        fiber = Fiber{};
        fiber.index = index;
        fiber.number = number;
        make_context(fiber.context, stacks.stack(i), fiber_main);
    }
    for (Meeting &meeting : meetings) meeting = {};
    for (Barrier &barrier : barriers) {
        barrier.arrived = 0;
        barrier.waiting.clear();
    }
    size_t live = count;
    size_t num_warps = (count + WARP - 1) / WARP;
    while (live > 0) {
        bool progress = false;
        for (size_t turn = 0; turn < num_warps; turn++) {
            // A warp goes as far as it can before the next has its turn: what a missing barrier lets it overtake shows.
            size_t warp = reversed ? num_warps - 1 - turn : turn;
            while (run_warp(warp * WARP, reversed, live)) progress = true;
            if (!error.empty()) return;
        }
        if (!progress) return report_standstill();
    }
}

template <class... Arguments, size_t... I>
static void call(void (*kernel)(Arguments...), void **arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<std::remove_reference_t<Arguments>> *>(arguments[I])...);
}

// Runs `kernel` as cuLaunchKernel would; `arguments` points at each argument's value. Null, or what went wrong.
template <class... Arguments>
static const char *launch(void (*kernel)(Arguments...), const Launch &launch, void **arguments, size_t count) {
    if (count != sizeof...(Arguments)) return "the kernel takes another number of arguments";
    static void (*kernel_now)(Arguments...);
    static void **arguments_now;
    kernel_now = kernel;
    arguments_now = arguments;
    body = [] { call(kernel_now, arguments_now, std::index_sequence_for<Arguments...>{}); };

    error.clear();
    size_t num_threads = size_t(launch.block.x) * launch.block.y * launch.block.z;
    size_t num_blocks = size_t(launch.grid.x) * launch.grid.y * launch.grid.z;
    if (num_threads == 0 || num_threads > MAX_BLOCK_THREADS) return "a block has 1 to 1024 threads";
    if (num_blocks == 0) return "a grid has at least one block";
    if (launch.grid.y > 65535 || launch.grid.z > 65535) return "a grid has at most 65535 blocks in y and z";
    if (launch.shared_bytes > MAX_SHARED_BYTES) return "more shared memory than a block can have";
    if (!stacks.reserve(num_threads)) return "no memory for the stacks of the threads";
    fibers.resize(num_threads);
    grid_dim = launch.grid;
    block_dim = launch.block;
    for (size_t turn = 0; turn < num_blocks && error.empty(); turn++) {
        size_t block = launch.reversed ? num_blocks - 1 - turn : turn;
        block_index = Index{unsigned(block % grid_dim.x), unsigned(block / grid_dim.x % grid_dim.y),
                            unsigned(block / grid_dim.x / grid_dim.y)};
        memset(shared_memory, 0xff, launch.shared_bytes + GUARD_BYTES);
        if (__start_wattle_shared) memset(__start_wattle_shared, 0xff, __stop_wattle_shared - __start_wattle_shared);
        run_block(launch.reversed);
        for (unsigned i = 0; i < GUARD_BYTES && error.empty(); i++) {
            if (shared_memory[launch.shared_bytes + i] == 0xff) continue;
            error = "dynamic shared memory was written " + std::to_string(i) + " bytes behind its end";
        }
    }
    return error.empty() ? nullptr : error.c_str();
}

} // namespace host

// The checks that the compiler puts in call these, which are its runtime library's otherwise. An access that is not
// aligned to its type is a fault on the device; an index outside an array's bounds is the neighbour's memory.

extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_out_of_bounds(host::CheckedPlace *place, size_t index) {
    host::fail("%s:%u: index %zu is outside the array", place->file, place->line, index);
}

extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_type_mismatch_v1(host::CheckedPlace *place,
                                                                                       size_t address) {
    host::fail("%s:%u: address %zx is not aligned to the type that is accessed", place->file, place->line, address);
}
