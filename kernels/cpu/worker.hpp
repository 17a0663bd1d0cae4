// A device's own thread: runs segments, then samples rows of logits, and says on a pipe when it is done, so that an
// event loop can wait for it like for a socket and no other thread of the interpreter takes part.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "pool.hpp"
#include "sampler.hpp"
#include "segment.hpp"

namespace cpu {

// How to sample from one row of logits.
struct Draw {
    SamplingParams params;
    std::vector<int32_t> history;
    int64_t n_logprobs;  // -1: none wanted
};

struct Drawn {
    int64_t token;  // or one of the sampler's codes below 0
    Logprobs logprobs;
};

// Memory that the job names stays alive and untouched until `take`.
struct Job {
    std::vector<std::pair<Segment*, Values>> segments;
    const float* logits;  // [draws, n_vocab], written by the segments
    int64_t n_vocab;
    std::vector<Draw> draws;
    bool is_alone;  // on the worker's thread, without the pool's others
};

class Worker {
public:
    // Rows are sampled on the pool's threads.  Throws std::system_error when there is no pipe to be had.
    explicit Worker(std::shared_ptr<Pool> pool);
    ~Worker();
    Worker(const Worker&) = delete;
    Worker& operator=(const Worker&) = delete;

    // Readable once the job that was started is done.
    int fd() const { return ends_[0]; }
    // Throws std::logic_error while a job is under way or its result has not been taken.
    void start(Job job);
    // The result of the job that is done, or what it threw.  Throws std::logic_error when none is done.
    std::vector<Drawn> take();
    // Seconds spent in segments so far: all else that a step takes is overhead.
    double compute_s() const { return compute_s_.load(std::memory_order_relaxed); }

private:
    void work();
    void execute();

    void wait_for_job(uint32_t seen) const;

    std::shared_ptr<Pool> pool_;
    std::array<int, 2> ends_;
    // Who may touch what follows: the caller while idle or done, the worker's thread while started.
    enum class Phase : uint8_t { kIdle, kStarted, kDone };
    std::atomic<Phase> phase_{Phase::kIdle};
    alignas(64) std::atomic<uint32_t> n_started_{0};
    std::atomic<bool> is_stopping_{false};
    Job job_;
    std::vector<Drawn> drawn_;
    std::exception_ptr error_;
    std::atomic<double> compute_s_{0.0};
    std::thread thread_;
};

}  // namespace cpu
