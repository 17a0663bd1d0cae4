#include "pool.hpp"

#include <cstdio>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace cpu {
namespace {

// About 20 to 50 microseconds: longer than the gaps inside a run, shorter than anyone would notice in idle.
constexpr int kSpin = 1000;

void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

int n_processors() {
#if defined(__linux__)
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
#endif
    return static_cast<int>(std::thread::hardware_concurrency());
}

void name_thread(int thread) {
#if defined(__linux__)
    char name[16];
    std::snprintf(name, sizeof name, "kernels-%d", thread);
    pthread_setname_np(pthread_self(), name);
#else
    (void)thread;
#endif
}

}  // namespace

Pool::Pool(int n_threads) : n_threads_(n_threads), n_spin_(n_threads <= n_processors() ? kSpin : 0) {
    for (int thread = 1; thread < n_threads; thread++) threads_.emplace_back(&Pool::work, this, thread);
}

Pool::~Pool() {
    is_stopping_.store(true, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void Pool::wait_while(const std::atomic<uint32_t>& word, uint32_t old) const {
    for (int i = 0; i < n_spin_; i++) {
        if (word.load(std::memory_order_acquire) != old) return;
        relax();
    }
    while (word.load(std::memory_order_acquire) == old) word.wait(old, std::memory_order_acquire);
}

void Pool::barrier() {
    const int n_active = n_active_;  // read before this thread arrives: once all have, the next run may set it
    if (n_active == 1) {
        next_.store(0, std::memory_order_relaxed);
        return;
    }
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (n_arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(n_active)) {
        n_arrived_.store(0, std::memory_order_relaxed);
        next_.store(0, std::memory_order_relaxed);
        phase_.fetch_add(1, std::memory_order_release);
        phase_.notify_all();
    } else {
        wait_while(phase_, phase);
    }
}

void Pool::run(Task task, const void* context, bool is_alone) {
    const std::lock_guard<std::mutex> guard(is_running_);
    task_ = task;
    context_ = context;
    n_active_ = is_alone ? 1 : n_threads_;
    if (n_active_ > 1) {
        generation_.fetch_add(1, std::memory_order_release);
        generation_.notify_all();
    }
    task(context, thread(0));
    barrier();
}

void Pool::work(int index) {
    name_thread(index);
    for (uint32_t seen = 0;;) {
        wait_while(generation_, seen);
        seen++;
        if (is_stopping_.load(std::memory_order_relaxed)) return;
        task_(context_, this->thread(index));
        barrier();
    }
}

}  // namespace cpu
