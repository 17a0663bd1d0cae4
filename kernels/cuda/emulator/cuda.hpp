// CUDA's model of grids, blocks and warps, on one thread of a CPU: what the kernels' sources are compiled with where
// there is no GPU.
//
// Every thread of a block is a fiber; one runs until it has to wait for others (a barrier, a warp's exchange), then the
// next does.  Blocks run one after another.  The order in which fibers run is shuffled by a seed, shared memory begins
// poisoned, and a block whose fibers all wait for ever ends the process with words: so that races, reads of memory
// that nobody wrote and barriers that not all reach show, as far as they can on one thread; shadow.hpp finds races in
// shared memory whatever the order, where accesses are watched.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define UNWATCHED __attribute__((no_sanitize("thread")))  // not told to shadow.hpp

#define __device__
#define __global__
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __align__(n) alignas(n)
#define KERNEL extern "C" void
#define SHARED_BYTES(name) unsigned char* name = emulator::dynamic_shared()
// all variables of this kind lie together, so that they can be poisoned
#define __shared__ static __attribute__((section("emulated_shared")))

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
struct alignas(8) int2 {
    int x, y;
};
inline int2 make_int2(int x, int y) { return {x, y}; }
struct alignas(8) float2 {
    float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }

extern "C" {
extern unsigned char __start_emulated_shared[] __attribute__((weak)), __stop_emulated_shared[] __attribute__((weak));
}

namespace emulator {

constexpr int kWarp = 32;
constexpr size_t kStackBytes = 64 << 10;
constexpr unsigned char kPoison = 0xff;  // a NaN in any float

#if defined(__x86_64__)
// Saves what a call has to keep, and goes on where `to` was saved.
extern "C" void emulator_switch(void** from, void* to);
asm(".text\n.type emulator_switch, @function\nemulator_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n"
    ".size emulator_switch, .-emulator_switch\n");
#endif

struct Fiber {
    std::unique_ptr<unsigned char[]> stack{new unsigned char[kStackBytes]};
#if defined(__x86_64__)
    void* place = nullptr;
#else
    ucontext_t place;
#endif
    dim3 thread;
    int index = 0;
    bool is_done = false;
    long n_barriers = 0;   // reached
    long n_exchanges = 0;  // of its warp, reached
    long n_warp_barriers = 0;
    int vote = 0;  // in `barrier_or`
};

// What a lane gives to its warp.
struct Given {
    alignas(8) unsigned char bytes[24];

    template <class T>
    T as() const {
        static_assert(sizeof(T) <= sizeof bytes, "more than a lane can give");
        T value;
        std::memcpy(&value, bytes, sizeof value);
        return value;
    }
};

struct Exchange {
    Given lanes[2][kWarp];  // of this exchange and the one before: some may still read that
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<Exchange> warps;
    std::vector<unsigned char> shared;
    Fiber *first_fiber = nullptr, *current = nullptr;
    Exchange* first_warp = nullptr;
#if defined(__x86_64__)
    void* home = nullptr;
#else
    ucontext_t home;
#endif
    dim3 grid, block, index;
    int n_threads = 0;
    void (*body)(void*) = nullptr;
    void* context = nullptr;
    bool has_moved = false;
    long first_epoch = 0;  // of shared memory's shadow: grows with each block and each barrier
};

static Block the_block;

UNWATCHED inline Block& block() { return the_block; }

[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "emulated CUDA: %s (block %u %u %u)\n", what, block().index.x, block().index.y,
                 block().index.z);
    std::abort();
}

UNWATCHED inline void leave() {
    Block& b = block();
#if defined(__x86_64__)
    emulator_switch(&b.current->place, b.home);
#else
    swapcontext(&b.current->place, &b.home);
#endif
}

inline void enter(Fiber& fiber) {
    Block& b = block();
    b.current = &fiber;
#if defined(__x86_64__)
    emulator_switch(&b.home, fiber.place);
#else
    swapcontext(&b.home, &fiber.place);
#endif
}

inline void run_fiber() {
    Block& b = block();
    b.body(b.context);
    b.current->is_done = true;
    b.has_moved = true;
    leave();
    fail("a thread that has ended ran on");
}

inline void prepare(Fiber& fiber) {
    unsigned char* top = fiber.stack.get() + kStackBytes;
    top -= reinterpret_cast<uintptr_t>(top) % 16;
#if defined(__x86_64__)
    void** at = reinterpret_cast<void**>(top) - 1;  // as after a call: 8 off the alignment
    *--at = reinterpret_cast<void*>(&run_fiber);
    at -= 6;
    std::memset(at, 0, 6 * sizeof(void*));
    fiber.place = at;
#else
    getcontext(&fiber.place);
    fiber.place.uc_stack.ss_sp = fiber.stack.get();
    fiber.place.uc_stack.ss_size = kStackBytes;
    fiber.place.uc_link = nullptr;
    makecontext(&fiber.place, &run_fiber, 0);
#endif
}

inline unsigned char* dynamic_shared() {
    return block().shared.data() + (16 - reinterpret_cast<uintptr_t>(block().shared.data()) % 16) % 16;
}

// Wait until every fiber that is still running has come as far.
UNWATCHED inline void barrier() {
    Block& b = block();
    const Fiber* fibers = b.first_fiber;
    const long mine = ++b.current->n_barriers;
    b.has_moved = true;
    while (true) {
        bool are_all_here = true;
        for (int i = 0; i < b.n_threads; i++) are_all_here &= fibers[i].is_done || fibers[i].n_barriers >= mine;
        if (are_all_here) return;
        leave();
    }
}

// The same; whether it is so for any.
inline bool barrier_or(bool is_so) {
    Block& b = block();
    b.current->vote = is_so;
    barrier();
    bool is_any = false;
    for (int i = 0; i < b.n_threads; i++) is_any |= !b.fibers[i].is_done && b.fibers[i].vote;
    barrier();  // votes stay until all have counted them
    return is_any;
}

// Give a value to the warp and wait until its lanes have given theirs; the lanes' values.
template <class T>
UNWATCHED const Given* exchange(unsigned mask, const T& value) {
    Block& b = block();
    Fiber& me = *b.current;
    const int warp = me.index / kWarp, lane = me.index % kWarp;
    if (!(mask >> lane & 1)) fail("a lane takes part in an exchange whose mask leaves it out");
    const long mine = ++me.n_exchanges;
    b.has_moved = true;
    Given* lanes = b.first_warp[warp].lanes[mine % 2];
    const Fiber* fibers = b.first_fiber;
    static_assert(sizeof value <= sizeof lanes->bytes, "more than a lane can give");
    std::memcpy(lanes[lane].bytes, &value, sizeof value);
    while (true) {
        bool are_all_here = true;
        for (int i = 0; i < kWarp; i++) {
            const int at = warp * kWarp + i;
            if (!(mask >> i & 1)) continue;
            if (at < b.n_threads && fibers[at].n_exchanges >= mine) continue;
            if (at >= b.n_threads || fibers[at].is_done) fail("a lane of an exchange's mask has ended");
            are_all_here = false;
        }
        if (are_all_here) return lanes;
        leave();
    }
}

template <class T>
T shuffle(unsigned mask, T value, int from) {
    return exchange(mask, value)[from & (kWarp - 1)].template as<T>();
}

inline void watch(Block& b);  // shadow.hpp

inline unsigned next_random(unsigned& state) { return state = state * 1664525u + 1013904223u; }

// One block after another; seed: of the order in which a block's threads run.
inline void launch(dim3 grid, dim3 size, size_t shared_bytes, unsigned seed, void (*body)(void*), void* context) {
    Block& b = block();
    b.grid = grid, b.block = size, b.body = body, b.context = context;
    b.n_threads = static_cast<int>(size.x * size.y * size.z);
    if (b.fibers.size() < static_cast<size_t>(b.n_threads)) b.fibers.resize(b.n_threads);
    b.warps.resize((b.n_threads + kWarp - 1) / kWarp);
    b.first_fiber = b.fibers.data(), b.first_warp = b.warps.data();
    b.shared.assign(shared_bytes + 16, kPoison);
    watch(b);
    std::vector<int> order(b.n_threads);
    for (int i = 0; i < b.n_threads; i++) order[i] = i;
    for (unsigned z = 0; z < grid.z; z++) {
        for (unsigned y = 0; y < grid.y; y++) {
            for (unsigned x = 0; x < grid.x; x++) {
                b.index.x = x, b.index.y = y, b.index.z = z;
                b.first_epoch += 1L << 32;  // more than a block has barriers
                std::memset(b.shared.data(), kPoison, b.shared.size());
                if (__start_emulated_shared)
                    std::memset(__start_emulated_shared, kPoison, __stop_emulated_shared - __start_emulated_shared);
                for (int i = 0; i < b.n_threads; i++) {
                    Fiber& fiber = b.fibers[i];
                    const unsigned at = static_cast<unsigned>(i);
                    fiber.thread.x = at % size.x, fiber.thread.y = at / size.x % size.y;
                    fiber.thread.z = at / size.x / size.y;
                    fiber.index = i, fiber.is_done = false, fiber.n_barriers = fiber.n_exchanges = 0;
                    fiber.n_warp_barriers = 0;
                    prepare(fiber);
                    std::swap(order[i], order[next_random(seed) / 65536 % (i + 1)]);
                }
                int n_running = b.n_threads;
                while (n_running > 0) {
                    b.has_moved = false;
                    n_running = 0;
                    for (int i : order) {
                        if (b.fibers[i].is_done) continue;
                        enter(b.fibers[i]);
                        n_running += !b.fibers[i].is_done;
                    }
                    if (n_running > 0 && !b.has_moved) fail("all threads of a block wait for one another");
                }
                b.current = nullptr;
            }
        }
    }
}

template <class... A>
struct Call {
    void (*kernel)(A...);
    void** args;

    template <size_t... I>
    void with(std::index_sequence<I...>) const {
        kernel(*static_cast<A*>(args[I])...);
    }
    static void run(void* self) { static_cast<const Call*>(self)->with(std::index_sequence_for<A...>()); }
};

template <class... A>
void launch_kernel(void (*kernel)(A...), const unsigned* sizes, size_t shared_bytes, unsigned seed, void** args) {
    Call<A...> call{kernel, args};
    launch({sizes[0], sizes[1], sizes[2]}, {sizes[3], sizes[4], sizes[5]}, shared_bytes, seed, &Call<A...>::run, &call);
}

}  // namespace emulator

// sizes: grid, then block.
#define EMULATED(name)                                                                                       \
    extern "C" void emulate_##name(const unsigned* sizes, size_t shared_bytes, unsigned seed, void** args) { \
        emulator::launch_kernel(&name, sizes, shared_bytes, seed, args);                                     \
    }

#define threadIdx (emulator::block().current->thread)
#define blockIdx (emulator::block().index)
#define blockDim (emulator::block().block)
#define gridDim (emulator::block().grid)

inline void __syncthreads() { emulator::barrier(); }
inline int __syncthreads_or(int is_so) { return emulator::barrier_or(is_so != 0); }
inline void __threadfence() {}
// fibers are not interrupted
inline int atomicAdd(int* at, int value) {
    const int before = *at;
    *at += value;
    return before;
}
// what they do is ordered by itself: no race in shared memory
UNWATCHED inline unsigned atomicAdd(unsigned* at, unsigned value) {
    const unsigned before = *at;
    *at += value;
    return before;
}
UNWATCHED inline unsigned atomicOr(unsigned* at, unsigned value) {
    const unsigned before = *at;
    *at |= value;
    return before;
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
    emulator::exchange(mask, 0);
    emulator::block().current->n_warp_barriers++;
}
template <class T>
T __shfl_sync(unsigned mask, T value, int from) {
    return emulator::shuffle(mask, value, from);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int with) {
    return emulator::shuffle(mask, value, (emulator::block().current->index ^ with) & (emulator::kWarp - 1));
}
inline unsigned __ballot_sync(unsigned mask, int is_so) {
    const emulator::Given* lanes = emulator::exchange(mask, is_so);
    unsigned ballot = 0;
    for (int i = 0; i < emulator::kWarp; i++)
        if (mask >> i & 1 && lanes[i].as<int>()) ballot |= 1u << i;
    return ballot;
}
inline int __any_sync(unsigned mask, int is_so) { return __ballot_sync(mask, is_so) != 0; }
inline int __all_sync(unsigned mask, int is_so) { return !__any_sync(mask, !is_so); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }

inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) c += static_cast<int8_t>(a >> 8 * i) * static_cast<int8_t>(b >> 8 * i);
    return c;
}
inline int __vsub4(int a, int b) {
    unsigned word = 0;
    for (int i = 0; i < 4; i++)
        word |= ((static_cast<unsigned>(a) >> 8 * i) - (static_cast<unsigned>(b) >> 8 * i) & 255u) << 8 * i;
    return static_cast<int>(word);
}
inline float __int_as_float(int bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline int __float_as_int(float value) {
    int bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
inline long long __double_as_longlong(double value) {
    long long bits;
    std::memcpy(&bits, &value, 8);
    return bits;
}
inline int __clzll(long long bits) { return bits == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(bits)); }
inline int __float2int_rn(float value) { return static_cast<int>(std::nearbyint(value)); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fsub_rn(float a, float b) { return a - b; }

// IEEE binary16, to nearest even.
inline float half_to_float(unsigned short bits) {
    const unsigned sign = static_cast<unsigned>(bits & 0x8000) << 16, exponent = bits >> 10 & 31,
                   mantissa = bits & 1023;
    if (exponent == 0) return (sign ? -0x1p-24f : 0x1p-24f) * static_cast<float>(mantissa);
    const unsigned biased = exponent == 31 ? 255 : exponent + 112;
    return __int_as_float(static_cast<int>(sign | biased << 23 | mantissa << 13));
}
inline unsigned short float_to_half(float value) {
    const unsigned bits = static_cast<unsigned>(__float_as_int(value)), sign = bits >> 16 & 0x8000;
    const float size = std::fabs(value);
    if (size != size) return static_cast<unsigned short>(sign | 0x7e00);
    if (size >= 65520.0f) return static_cast<unsigned short>(sign | 0x7c00);
    if (size < 6.103515625e-05f)
        return static_cast<unsigned short>(sign | static_cast<unsigned>(std::nearbyint(std::ldexp(size, 24))));
    int exponent;
    std::frexp(size, &exponent);  // size = f * 2^exponent, f in [0.5, 1)
    unsigned mantissa = static_cast<unsigned>(std::nearbyint(std::ldexp(size, 11 - exponent)));
    unsigned biased = static_cast<unsigned>(exponent + 14);
    if (mantissa == 2048) mantissa = 1024, biased++;
    return static_cast<unsigned short>(sign | biased << 10 | (mantissa & 1023));
}
inline unsigned halves_of(float low, float high) {
    return float_to_half(low) | static_cast<unsigned>(float_to_half(high)) << 16;
}

// Matrix instructions; device.cuh says which lane holds what.
namespace emulator {

inline float half_at(unsigned word, int i) { return half_to_float(static_cast<unsigned short>(word >> 16 * i)); }

struct Factors {
    unsigned a[4], b[2];
};

}  // namespace emulator

inline void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const emulator::Given* lanes = emulator::exchange(~0u, emulator::Factors{{a[0], a[1], a[2], a[3]}, {b0, b1}});
    const int lane = emulator::block().current->index % emulator::kWarp, g = lane / 4, t = lane % 4;
    for (int k = 0; k < 16; k++) {
        const int pair = k % 8 / 2;  // of lanes, which holds this of a row or column
        const emulator::Factors row = lanes[4 * g + pair].as<emulator::Factors>();
        for (int col = 0; col < 2; col++) {
            const emulator::Factors column = lanes[4 * (2 * t + col) + pair].as<emulator::Factors>();
            const float b = emulator::half_at(column.b[k / 8], k % 2);
            for (int half = 0; half < 2; half++)
                c[2 * half + col] += emulator::half_at(row.a[k / 8 * 2 + half], k % 2) * b;
        }
    }
}
inline void load_transposed(unsigned (&to)[4], const unsigned short* row) {
    const emulator::Given* lanes = emulator::exchange(~0u, row);
    const int lane = emulator::block().current->index % emulator::kWarp, g = lane / 4, t = lane % 4;
    for (int m = 0; m < 4; m++) {
        const auto* even = lanes[8 * m + 2 * t].as<const unsigned short*>();
        const auto* odd = lanes[8 * m + 2 * t + 1].as<const unsigned short*>();
        to[m] = even[g] | static_cast<unsigned>(odd[g]) << 16;
    }
}
