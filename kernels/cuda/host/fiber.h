// Fibers: the threads of one block on one thread of the host, switched by hand, so that a CUDA thread can stop inside
// ordinary control flow and go on later.
//
// On x86-64 a switch saves the six registers that a call must preserve; elsewhere it is ucontext's, which is slower.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <sys/mman.h>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace host {

// Enough for a kernel's local arrays; pages that are never touched cost nothing.
static constexpr size_t STACK_BYTES = 256 << 10;

#if defined(__x86_64__)

struct Context {
    void *stack_pointer;
};

extern "C" void wattle_switch(void **save, void *load) __attribute__((visibility("hidden")));
asm(R"(
    .text
    .type wattle_switch,@function
wattle_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size wattle_switch,.-wattle_switch
)");

static inline void switch_context(Context &from, Context &to) {
    wattle_switch(&from.stack_pointer, to.stack_pointer);
}

// The first switch to `context` calls `entry` on the given stack; `entry` must never return.
static inline void make_context(Context &context, unsigned char *stack, void (*entry)()) {
    void **top = reinterpret_cast<void **>(stack + STACK_BYTES);
    *--top = nullptr; // the return address that entry does not have; it also aligns the stack as a call would
    *--top = reinterpret_cast<void *>(entry);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    context.stack_pointer = top;
}

#else

struct Context {
    ucontext_t context;
};

static inline void switch_context(Context &from, Context &to) { swapcontext(&from.context, &to.context); }

static inline void make_context(Context &context, unsigned char *stack, void (*entry)()) {
    getcontext(&context.context);
    context.context.uc_stack.ss_sp = stack;
    context.context.uc_stack.ss_size = STACK_BYTES;
    context.context.uc_link = nullptr;
    makecontext(&context.context, entry, 0);
}

#endif

// Stacks that are kept from launch to launch.
struct Stacks {
    unsigned char *base = nullptr;
    size_t count = 0;

    // Whether there are `wanted` stacks now.
    bool reserve(size_t wanted) {
        if (wanted <= count) return true;
        if (base) munmap(base, count * STACK_BYTES);
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void *memory = mmap(nullptr, wanted * STACK_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0);
        bool mapped = memory != MAP_FAILED;
        base = mapped ? static_cast<unsigned char *>(memory) : nullptr;
        count = mapped ? wanted : 0;
        return mapped;
    }

    unsigned char *stack(size_t i) { return base + i * STACK_BYTES; }
};

} // namespace host
