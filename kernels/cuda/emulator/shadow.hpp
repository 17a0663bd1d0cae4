// Races in shared memory: two threads touch a byte, one of them writes, and no barrier lies between.
//
// The compiler calls a function before each access (-fsanitize=thread); these here take the place of its own library's.
// Each byte of shared memory has a shadow: who wrote it last and who has read it since, and how many barriers those
// had behind them.  What a thread did is over for another that has since passed a barrier of the block, or of the warp
// where both are in one.  Exchanges of a warp order no memory, so they do not count.
#pragma once

namespace emulator {

constexpr int kSeveral = -1;

struct Access {
    long epoch = -1;
    int warp_epoch = 0;
    short thread = kSeveral, warp = kSeveral;
};

struct Shadow {
    Access write, read, others;  // the last write; since then the last read, and reads of other threads
};

struct Watched {
    unsigned char* begin = nullptr;
    size_t n_bytes = 0;
    std::vector<Shadow> shadows;
    Shadow* first = nullptr;

    void watch(unsigned char* memory, size_t size) {
        if (shadows.size() < size) shadows.resize(size);
        begin = memory, n_bytes = size, first = shadows.data();
    }
};

static Watched watched[2];  // dynamic shared memory, and variables

inline void watch(Block& b) {
    watched[0].watch(b.shared.data(), b.shared.size());
    if (__start_emulated_shared)
        watched[1].watch(__start_emulated_shared, __stop_emulated_shared - __start_emulated_shared);
}

UNWATCHED inline bool is_over(const Access& a, const Access& now) {
    return a.epoch < now.epoch || a.thread == now.thread || (a.warp == now.warp && a.warp_epoch < now.warp_epoch);
}

UNWATCHED inline Access both(const Access& a, const Access& b) {
    if (a.epoch != b.epoch) return a.epoch < b.epoch ? b : a;
    Access made = a;
    if (b.warp_epoch > a.warp_epoch) made.warp_epoch = b.warp_epoch;
    if (a.thread != b.thread) made.thread = kSeveral;
    if (a.warp != b.warp) made.warp = kSeveral;
    return made;
}

UNWATCHED inline void touch(Shadow& shadow, const Access& now, bool is_write) {
    bool is_ordered = is_over(shadow.write, now);
    if (is_write) is_ordered = is_ordered && is_over(shadow.read, now) && is_over(shadow.others, now);
    if (!is_ordered) fail("two threads touch a byte of shared memory without a barrier between, one of them writes");
    if (is_write) {
        shadow.write = now;
        shadow.read = shadow.others = Access();
    } else {
        if (shadow.read.thread != now.thread) shadow.others = both(shadow.others, shadow.read);
        shadow.read = now;
    }
}

UNWATCHED inline void touch(const void* address, size_t n_bytes, bool is_write) {
    for (int i = 0; i < 2; i++) {
        const size_t at = static_cast<const unsigned char*>(address) - watched[i].begin;
        if (at >= watched[i].n_bytes) continue;
        const Fiber* fiber = the_block.current;
        if (fiber == nullptr) return;  // memory is poisoned between blocks
        const Access now = {the_block.first_epoch + fiber->n_barriers, static_cast<int>(fiber->n_warp_barriers),
                            static_cast<short>(fiber->index), static_cast<short>(fiber->index / kWarp)};
        for (size_t k = 0; k < n_bytes; k++) touch(watched[i].first[at + k], now, is_write);
    }
}

}  // namespace emulator

#define WATCH(n)                                                                         \
    UNWATCHED void __tsan_read##n(void* at) { emulator::touch(at, n, false); }           \
    UNWATCHED void __tsan_write##n(void* at) { emulator::touch(at, n, true); }           \
    UNWATCHED void __tsan_unaligned_read##n(void* at) { emulator::touch(at, n, false); } \
    UNWATCHED void __tsan_unaligned_write##n(void* at) { emulator::touch(at, n, true); }

extern "C" {
WATCH(1)
WATCH(2)
WATCH(4)
WATCH(8)
WATCH(16)
UNWATCHED void __tsan_read_range(void* at, size_t n) { emulator::touch(at, n, false); }
UNWATCHED void __tsan_write_range(void* at, size_t n) { emulator::touch(at, n, true); }
UNWATCHED void __tsan_init() {}
UNWATCHED void __tsan_func_entry(void*) {}
UNWATCHED void __tsan_func_exit() {}
}
