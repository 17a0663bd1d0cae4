#include "worker.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <stdexcept>
#include <system_error>

#if defined(__linux__)
#include <pthread.h>
#endif

namespace cpu {
namespace {

constexpr std::chrono::microseconds kWatch{300};

struct Sampling {
    const Job& job;
    std::vector<Drawn>& drawn;
};

void sample_row(const Sampling& sampling, size_t row) {
    const Job& job = sampling.job;
    const Draw& draw = job.draws[row];
    Drawn& drawn = sampling.drawn[row];
    const float* logits = job.logits + static_cast<int64_t>(row) * job.n_vocab;
    drawn.token = sample(logits, job.n_vocab, draw.history.data(), static_cast<int64_t>(draw.history.size()), nullptr,
                         draw.params);
    if (drawn.token >= 0 && draw.n_logprobs >= 0)
        drawn.logprobs = logprobs(logits, job.n_vocab, drawn.token, draw.n_logprobs);
}

void sample_rows(const void* context, const PoolThread& thread) {
    const Sampling& sampling = *static_cast<const Sampling*>(context);
    for (size_t row; (row = static_cast<size_t>(thread.take())) < sampling.job.draws.size();) sample_row(sampling, row);
}

}  // namespace

Worker::Worker(std::shared_ptr<Pool> pool) : pool_(std::move(pool)) {
    if (pipe(ends_.data()) != 0) throw std::system_error(errno, std::generic_category(), "pipe");
    for (const int end : ends_) {
        fcntl(end, F_SETFD, FD_CLOEXEC);
        fcntl(end, F_SETFL, O_NONBLOCK);
    }
    thread_ = std::thread(&Worker::work, this);
}

Worker::~Worker() {
    is_stopping_.store(true, std::memory_order_relaxed);
    n_started_.fetch_add(1, std::memory_order_release);
    n_started_.notify_one();
    thread_.join();
    for (const int end : ends_) close(end);
}

void Worker::start(Job job) {
    if (phase_.load(std::memory_order_acquire) != Phase::kIdle) throw std::logic_error("a job is under way");
    job_ = std::move(job);
    phase_.store(Phase::kStarted, std::memory_order_relaxed);
    n_started_.fetch_add(1, std::memory_order_release);
    n_started_.notify_one();
}

std::vector<Drawn> Worker::take() {
    if (phase_.load(std::memory_order_acquire) != Phase::kDone) throw std::logic_error("no job is done");
    char byte;
    if (read(ends_[0], &byte, 1) != 1) throw std::system_error(errno, std::generic_category(), "read of a pipe");
    job_ = {};
    phase_.store(Phase::kIdle, std::memory_order_relaxed);
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    return std::move(drawn_);
}

void Worker::work() {
#if defined(__linux__)
    pthread_setname_np(pthread_self(), "device");
#endif
    for (uint32_t seen = 0;; seen++) {
        wait_for_job(seen);
        if (is_stopping_.load(std::memory_order_relaxed)) return;
        execute();
        phase_.store(Phase::kDone, std::memory_order_release);
        const char byte = 0;
        // the pipe holds one byte at most, so there is room
        if (write(ends_[1], &byte, 1) != 1) std::terminate();
    }
}

// Between two steps of a running sequence there is no time to be woken from sleep, which takes longer than all that
// the event loop does meanwhile; so the thread watches for a moment.
void Worker::wait_for_job(uint32_t seen) const {
    const auto until = std::chrono::steady_clock::now() + kWatch;
    while (n_started_.load(std::memory_order_acquire) == seen) {
        if (std::chrono::steady_clock::now() >= until) {
            n_started_.wait(seen, std::memory_order_acquire);
        } else {
            std::this_thread::yield();
        }
    }
}

void Worker::execute() {
    try {
        const auto began = std::chrono::steady_clock::now();
        for (const auto& [segment, values] : job_.segments) segment->run(values, job_.is_alone);
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
        compute_s_.store(compute_s() + took.count(), std::memory_order_relaxed);
        drawn_.assign(job_.draws.size(), Drawn{});
        const Sampling sampling{job_, drawn_};
        if (job_.draws.size() > 1) {
            pool_->run(sample_rows, &sampling, job_.is_alone);
        } else if (!job_.draws.empty()) {
            sample_row(sampling, 0);
        }
    } catch (...) {
        error_ = std::current_exception();
    }
}

}  // namespace cpu
