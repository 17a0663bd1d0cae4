// Threads that run one task together, with barriers inside it.
//
// A task is short (a decode step of a small model takes tens of microseconds), so waiting threads spin for a
// moment before they sleep in the kernel.  With more threads than processors spinning would take time from
// the thread that is waited for, so then they sleep at once.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace cpu {

// One of the threads of a run.  Between two barriers each of 0, 1, 2... is taken by just one of them: work is handed
// out as threads become free, so that one that was held up by the system holds up nobody else.
struct PoolThread {
    int index, n_threads;
    std::atomic<int64_t>& next;
    int64_t take() const { return next.fetch_add(1, std::memory_order_relaxed); }
};

class Pool {
public:
    using Task = void (*)(const void* context, const PoolThread& thread);

    // n_threads includes the caller of `run`; n_threads >= 1.
    explicit Pool(int n_threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int n_threads() const { return n_threads_; }

    // Runs task(context, thread) on all threads, or on the caller alone and wakes nobody; returns when all have ended.
    // One run at a time.
    void run(Task task, const void* context, bool is_alone);

    // Inside a task: returns when all threads have called it.
    void barrier();

private:
    void work(int index);
    PoolThread thread(int index) { return {index, n_active_, next_}; }
    void wait_while(const std::atomic<uint32_t>& word, uint32_t old) const;

    const int n_threads_;
    const int n_spin_;
    std::mutex is_running_;
    int n_active_ = 1;  // of the run that is under way
    Task task_ = nullptr;
    const void* context_ = nullptr;
    alignas(64) std::atomic<uint32_t> generation_{0};  // counts runs; a change starts one
    alignas(64) std::atomic<int64_t> next_{0};         // for PoolThread::take; a barrier sets it back
    alignas(64) std::atomic<uint32_t> n_arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};  // counts barriers; a change opens one
    std::atomic<bool> is_stopping_{false};
    std::vector<std::thread> threads_;
};

}  // namespace cpu
