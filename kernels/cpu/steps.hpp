// How each op's work is divided among threads.  A division never cuts a sum: results do not depend on it.
#pragma once

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "segment.hpp"

namespace cpu {

// Calls f(begin, end) for this thread's pieces of 0..n, each a multiple of `grain` but the last.
template <class F>
void share(const Worker& worker, int64_t n, int64_t grain, F f) {
    // pieces enough that threads end together, few enough that taking one costs nothing
    const int64_t n_pieces = 16 * worker.n_threads, n_grains = (n + grain - 1) / grain;
    const int64_t piece = std::max<int64_t>(1, (n_grains + n_pieces - 1) / n_pieces) * grain;
    for (int64_t begin; (begin = worker.take() * piece) < n;) f(begin, std::min(n, begin + piece));
}

// 64 bytes of floats: two threads never write to one cache line, and vectors are whole
constexpr int64_t kLineFloats = 16;

struct RowsStep final : Step {
    RowsArgs args;
    Dim n;
    void run(const Kernels& kernels, const Values& values, int, const Worker& worker) const override {
        share(worker, value_of(n, values), 1, [&](int64_t begin, int64_t end) { kernels.rows(args, begin, end); });
    }
};

struct NormStep final : Step {
    NormArgs args;
    int64_t chunks_per_row;
    Dim n;
    void run(const Kernels& kernels, const Values& values, int, const Worker& worker) const override {
        share(worker, value_of(n, values) * chunks_per_row, 1,
              [&](int64_t begin, int64_t end) { kernels.rms_norm(args, begin, end); });
    }
};

// Phase one quantises the activations, unless the step before has left them in the workspace.
struct MatmulStep final : Step {
    MatmulArgs args;
    ActGroup* acts;
    int64_t thread_floats;  // of scratch
    Dim n;
    bool quantizes;
    int n_phases() const override { return quantizes ? 2 : 1; }
    void run(const Kernels& kernels, const Values& values, int phase, const Worker& worker) const override {
        MatmulArgs now = args;
        now.n = value_of(n, values);
        now.scratch = args.scratch + worker.thread * thread_floats;
        if (quantizes && phase == 0) {
            share(worker, now.n * ((now.n_in + ActGroup::kSize - 1) / ActGroup::kSize), 1,
                  [&](int64_t begin, int64_t end) { kernels.quantize(now.x, acts, now.n, now.n_in, begin, end); });
        } else if (now.n > 0) {
            share(worker, now.n_out, now.n < kFewColumns ? kPanelRows : kMatmulRows,
                  [&](int64_t begin, int64_t end) { kernels.matmul(now, begin, end); });
        }
    }
};

struct RopeStep final : Step {
    RopeArgs args;
    std::vector<float> inv_freq;
    Dim n;
    void run(const Kernels& kernels, const Values& values, int, const Worker& worker) const override {
        share(worker, value_of(n, values) * args.n_head, 1,
              [&](int64_t begin, int64_t end) { kernels.rope(args, begin, end); });
    }
};

struct StoreStep final : Step {
    StoreArgs args;
    std::vector<float> inv_freq;
    Dim n;
    void run(const Kernels& kernels, const Values& values, int, const Worker& worker) const override {
        StoreArgs now = args;
        now.n = value_of(n, values);
        share(worker, now.n_head, 1, [&](int64_t begin, int64_t end) { kernels.store_kv(now, begin, end); });
    }
};

struct AttentionStep final : Step {
    AttentionArgs args;
    float* scratch;
    int64_t thread_floats;
    Dim n, n_pages;
    void run(const Kernels& kernels, const Values& values, int, const Worker& worker) const override {
        AttentionArgs now = args;
        now.n_pages = value_of(n_pages, values);
        share(worker, value_of(n, values) * now.n_kv, 1, [&](int64_t begin, int64_t end) {
            for (int64_t item = begin; item < end; item++)
                kernels.attention(now, item, scratch + worker.thread * thread_floats);
        });
    }
};

struct GateStep final : Step {
    const float *gate, *up;
    float* out;
    int64_t width;
    Dim n;
    void run(const Kernels& kernels, const Values& values, int, const Worker& worker) const override {
        share(worker, value_of(n, values) * width, kLineFloats,
              [&](int64_t begin, int64_t end) { kernels.swiglu(gate, up, out, begin, end); });
    }
};

struct CopyStep final : Step {
    const uint8_t* source;
    uint8_t* target;
    int64_t item_bytes;  // of what the dimensions count
    std::vector<Dim> dims;
    void run(const Kernels&, const Values& values, int, const Worker& worker) const override {
        int64_t n_bytes = item_bytes;
        for (const Dim dim : dims) n_bytes *= value_of(dim, values);
        share(worker, n_bytes, 4096, [&](int64_t begin, int64_t end) {
            std::memcpy(target + begin, source + begin, static_cast<size_t>(end - begin));
        });
    }
};

}  // namespace cpu
