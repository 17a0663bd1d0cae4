// How each op's work is divided among threads.  A division never cuts a sum: results do not depend on it.
#pragma once

#include <algorithm>
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
        const Share share(value_of(n, values) * args.cache.n_kv, 1, thread, n_threads);
        kernels.store_kv(args, share.begin, share.end);
    }
};

// Items are runs of a sequence's rows at one key/value head.  Where rows and heads are too few to balance the
// threads, the chunks of a row are items of their own and phase two merges them: the same sums in the same order.
struct AttentionStep final : Step {
    AttentionArgs args;
    float *scratch, *partials;  // per thread; [row, key/value head, chunk], or null
    int64_t thread_floats, max_queries;
    Dim n, n_pages;

    int n_phases() const override { return 2; }

    void run(const Kernels& kernels, const Values& values, int phase, int thread, int n_threads) const override {
        AttentionArgs now = args;
        now.n_pages = value_of(n_pages, values);
        const int64_t n_rows = value_of(n, values), n_kv = now.cache.n_kv;
        const int64_t n_chunks = (now.n_pages * now.cache.page_size + kAttentionChunk - 1) / kAttentionChunk;
        if (n_chunks > 1 && is_split(n_rows, n_kv, n_threads)) {
            run_chunks(kernels, now, n_rows, n_chunks, phase, thread, n_threads);
        } else if (phase == 0) {
            run_rows(kernels, now, n_rows, thread, n_threads);
        }
    }

    static bool is_split(int64_t n_rows, int64_t n_kv, int64_t n_threads) {
        return n_threads > 1 && n_rows * n_kv < kItemsPerThread * n_threads;
    }

    // Floats for partial results of at most n_rows rows.
    static int64_t partial_floats(const CacheShape& cache, int64_t n_group, int64_t n_rows, int64_t n_cells,
                                  int64_t n_threads) {
        if (n_threads == 1 || n_cells <= kAttentionChunk) return 0;
        const int64_t n_items = std::min(n_rows * cache.n_kv, kItemsPerThread * n_threads);
        const int64_t n_chunks = (n_cells + kAttentionChunk - 1) / kAttentionChunk;
        return n_items * n_chunks * attention_partial(n_group, cache.head_dim);
    }

private:
    static constexpr int64_t kItemsPerThread = 4;

    void run_chunks(const Kernels& kernels, const AttentionArgs& now, int64_t n_rows, int64_t n_chunks, int phase,
                    int thread, int n_threads) const {
        const int64_t n_kv = now.cache.n_kv, chunk_floats = attention_partial(now.n_group(), now.cache.head_dim);
        int64_t count = 0;
        for (int64_t unit = 0; unit < n_rows * n_kv; unit++) {
            const int64_t row = unit / n_kv, kv = unit % n_kv, stop = now.n_visible[row];
            const int64_t start = now.window > 0 ? std::max<int64_t>(0, stop - now.window - 1) : 0;
            float* mine = partials + unit * n_chunks * chunk_floats;
            if (phase == 1) {
                if (unit % n_threads == thread) kernels.merge_chunks(now, row, kv, mine);
                continue;
            }
            for (int64_t chunk = start / kAttentionChunk; chunk * kAttentionChunk < stop; chunk++) {
                if (count++ % n_threads != thread) continue;
                kernels.attention(now, {row, 1, kv, chunk, mine + chunk * chunk_floats},
                                  scratch + thread * thread_floats);
            }
        }
    }

    // Neighbours see almost equally much, so dealing the items out balances the threads.
    void run_rows(const Kernels& kernels, const AttentionArgs& now, int64_t n_rows, int thread, int n_threads) const {
        const int64_t max_rows = std::max<int64_t>(1, max_queries / now.n_group());
        int64_t count = 0;
        for (int64_t row = 0, next; row < n_rows; row = next) {
            for (next = row + 1; next < n_rows && next < row + max_rows; next++) {
                if (now.rows[next] != now.rows[row] || now.n_visible[next] != now.n_visible[next - 1] + 1) break;
            }
            for (int64_t kv = 0; kv < now.cache.n_kv; kv++) {
                if (count++ % n_threads != thread) continue;
                kernels.attention(now, {row, next - row, kv, -1, nullptr}, scratch + thread * thread_floats);
            }
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
