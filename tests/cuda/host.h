// CUDA C's built-in words for a host compiler: enough to run the kernels of src/quant/kernels/cuda without a GPU. The
// threads of a block are coroutines on one host thread; a barrier or a shuffle lets the others run until all are there.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static

struct dim { unsigned x, y, z; };
struct float4 { float x, y, z, w; } __attribute__((aligned(16)));
struct uint4 { unsigned x, y, z, w; } __attribute__((aligned(16)));
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline float __uint_as_float(unsigned bits) { float out; memcpy(&out, &bits, 4); return out; }
static inline unsigned __float_as_uint(float value) { unsigned out; memcpy(&out, &value, 4); return out; }

static dim threadIdx, blockIdx, blockDim, gridDim;

namespace host {
enum { STACK = 64 << 10 };

struct Thread {
    ucontext_t context;
    std::vector<char> stack;
    bool is_done;
    // Barriers and shuffles reached so far.
    unsigned barriers, shuffles;
    float slots[2];
};

static std::vector<Thread> threads;
static ucontext_t scheduler;
static unsigned current;
static void (*body)(void **);
static void **arguments;

static void enter() {
    body(arguments);
    threads[current].is_done = true;
    swapcontext(&threads[current].context, &scheduler);
}

static void pause() { swapcontext(&threads[current].context, &scheduler); }

// Whether all threads of `first..end` that still run have reached their `count`th barrier or shuffle.
template <typename Count> static bool all_reached(unsigned first, unsigned end, unsigned count, Count of) {
    for (unsigned i = first; i < end; i++) {
        if (!threads[i].is_done && of(threads[i]) < count) return false;
    }
    return true;
}

static void run_block() {
    for (unsigned i = 0; i < threads.size(); i++) {
        Thread &thread = threads[i];
        thread.is_done = false;
        thread.barriers = thread.shuffles = 0;
        thread.stack.resize(STACK);
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.data();
        thread.context.uc_stack.ss_size = STACK;
        thread.context.uc_link = nullptr;
        makecontext(&thread.context, enter, 0);
    }
    for (bool runs = true; runs;) {
        runs = false;
        for (current = 0; current < threads.size(); current++) {
            if (threads[current].is_done) continue;
            threadIdx = {current, 0, 0};
            swapcontext(&scheduler, &threads[current].context);
            runs = true;
        }
    }
}

template <typename... A, size_t... I> static void call(void (*kernel)(A...), void **p, std::index_sequence<I...>) {
    kernel(*(A *)p[I]...);
}
template <typename... A> static void call(void (*kernel)(A...), void **p) {
    call(kernel, p, std::index_sequence_for<A...>());
}
}

static inline void __syncthreads() {
    unsigned count = ++host::threads[host::current].barriers;
    while (!host::all_reached(0, blockDim.x, count, [](host::Thread &t) { return t.barriers; })) host::pause();
    threadIdx.x = host::current;
}

static inline float __shfl_xor_sync(unsigned mask, float value, int other) {
    if (mask != ~0u) abort();
    unsigned self = host::current, first = self & ~31u, count = ++host::threads[self].shuffles;
    host::threads[self].slots[count & 1] = value;
    while (!host::all_reached(first, first + 32, count, [](host::Thread &t) { return t.shuffles; })) host::pause();
    threadIdx.x = host::current;
    // A lane that has ended gives nothing on a GPU either: asking it is a fault of the kernel.
    if (host::threads[self ^ other].is_done && host::threads[self ^ other].shuffles < count) abort();
    return host::threads[self ^ other].slots[count & 1];
}
