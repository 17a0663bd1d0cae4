// How each op's work is divided among threads.  A division never cuts a sum: results do not depend on it.
#pragma once

#include <cstring>
#include <utility>
#include <vector>

#include "segment.hpp"

namespace cpu {

// 64 bytes of floats: two threads never write to one cache line, and vectors are whole
constexpr int64_t kLineFloats = 16;

struct RowsStep final : Step {
    RowsArgs args;
    Dim n;
    void run(const Kernels& kernels, const Values& values, int, int thread, int n_threads) const override {
        const Share share(value_of(n, values), 1, thread, n_threads);
        kernels.rows(args, share.begin, share.end);
    }
};

struct NormStep final : Step {
    NormArgs args;
    int64_t chunks_per_row;
    Dim n;
    void run(const Kernels& kernels, const Values& values, int, int thread, int n_threads) const override {
        const Share share(value_of(n, values) * chunks_per_row, 1, thread, n_threads);
        kernels.rms_norm(args, share.begin, share.end);
    }
};

// Phase one quantises the activations, unless the step before has left them in the workspace.
struct MatmulStep final : Step {
    MatmulArgs args;
    ActGroup* acts;
    Dim n;
    bool quantizes;
    int n_phases() const override { return quantizes ? 2 : 1; }
    void run(const Kernels& kernels, const Values& values, int phase, int thread, int n_threads) const override {
        MatmulArgs now = args;
        now.n = value_of(n, values);
        if (quantizes && phase == 0) {
            const Share share(now.n * ((now.n_in + 255) / 256), 1, thread, n_threads);
            kernels.quantize(now.x, acts, now.n_in, share.begin, share.end);
        } else if (now.n > 0) {
            const Share share(now.n_out, kLineFloats, thread, n_threads);
            kernels.matmul(now, share.begin, share.end);
        }
    }
};

struct RopeStep final : Step {
    RopeArgs args;
    std::vector<float> inv_freq;
    Dim n;
    void run(const Kernels& kernels, const Values& values, int, int thread, int n_threads) const override {
        const Share share(value_of(n, values) * args.n_head, 1, thread, n_threads);
        kernels.rope(args, share.begin, share.end);
    }
};

struct StoreStep final : Step {
    StoreArgs args;
    std::vector<float> inv_freq;
    Dim n;
    void run(const Kernels& kernels, const Values& values, int, int thread, int n_threads) const override {
        StoreArgs now = args;
        now.n = value_of(n, values);
        const Share share(now.n_head, 1, thread, n_threads);
        kernels.store_kv(now, share.begin, share.end);
    }
};

struct AttentionStep final : Step {
    AttentionArgs args;
    float* scratch;
    int64_t thread_floats;
    Dim n, n_pages;
    void run(const Kernels& kernels, const Values& values, int, int thread, int n_threads) const override {
        AttentionArgs now = args;
        now.n_pages = value_of(n_pages, values);
        // neighbours see almost equally much, so dealing the items out balances the threads
        const int64_t n_items = value_of(n, values) * now.n_kv;
        for (int64_t item = thread; item < n_items; item += n_threads) {
            kernels.attention(now, item, scratch + thread * thread_floats);
        }
    }
};

struct GateStep final : Step {
    const float *gate, *up;
    float* out;
    int64_t width;
    Dim n;
    void run(const Kernels& kernels, const Values& values, int, int thread, int n_threads) const override {
        const Share share(value_of(n, values) * width, kLineFloats, thread, n_threads);
        kernels.swiglu(gate, up, out, share.begin, share.end);
    }
};

struct CopyStep final : Step {
    const uint8_t* source;
    uint8_t* target;
    int64_t item_bytes;  // of what the dimensions count
    std::vector<Dim> dims;
    void run(const Kernels&, const Values& values, int, int thread, int n_threads) const override {
        int64_t n_bytes = item_bytes;
        for (const Dim dim : dims) n_bytes *= value_of(dim, values);
        const Share share(n_bytes, 4096, thread, n_threads);
        if (share.end > share.begin) {
            std::memcpy(target + share.begin, source + share.begin, static_cast<size_t>(share.end - share.begin));
        }
    }
};

}  // namespace cpu
