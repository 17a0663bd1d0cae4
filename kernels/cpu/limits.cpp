#include "limits.hpp"

#include <atomic>
#include <chrono>

#include "steps.hpp"

namespace cpu {
namespace {

// Runs part(thread) on every thread and adds up what they return.
template <class Part>
Measured measure(Pool& pool, Part part) {
    struct Work {
        const Part& part;
        std::atomic<uint64_t> total{0};
    } work{part};
    const auto task = [](const void* context, const PoolThread& thread) {
        // the pool hands the context through as it came in
        auto& mine = *static_cast<Work*>(const_cast<void*>(context));
        mine.total.fetch_add(mine.part(thread), std::memory_order_relaxed);
    };
    const auto began = std::chrono::steady_clock::now();
    pool.run(task, &work, false);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
    return {took.count(), work.total.load()};
}

}  // namespace

Measured measure_read(Pool& pool, const Kernels& kernels, const uint8_t* data, int64_t n_bytes) {
    const int64_t whole = n_bytes / kReadStep * kReadStep;
    return measure(pool, [&](const PoolThread& thread) {
        uint64_t total = 0;
        share(thread, whole, kReadStep,
              [&](int64_t begin, int64_t end) { total += kernels.limits.read_words(data + begin, end - begin); });
        return total;
    });
}

Measured measure_int8(Pool& pool, const Kernels& kernels, int64_t n_rounds) {
    return measure(pool, [&](const PoolThread&) { return static_cast<uint64_t>(kernels.limits.int8_chain(n_rounds)); });
}

Measured measure_f32(Pool& pool, const Kernels& kernels, int64_t n_rounds) {
    return measure(pool, [&](const PoolThread&) { return static_cast<uint64_t>(kernels.limits.f32_chain(n_rounds)); });
}

}  // namespace cpu
