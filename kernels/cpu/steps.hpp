// How each op's work is divided among threads.  A division never cuts a sum: results do not depend on it.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "segment.hpp"

namespace cpu {

// Calls f(begin, end) for the pieces of 0..n that this thread takes.
template <class F>
void share_pieces(const PoolThread& thread, int64_t n, int64_t piece, F f) {
    for (int64_t begin; (begin = thread.take() * piece) < n;) f(begin, std::min(n, begin + piece));
}

// The same with pieces enough that threads end together, few enough that taking one costs nothing; each but the last
// is a multiple of `grain`.
template <class F>
void share(const PoolThread& thread, int64_t n, int64_t grain, F f) {
    const int64_t n_pieces = 16 * thread.n_threads, n_grains = (n + grain - 1) / grain;
    share_pieces(thread, n, std::max<int64_t>(1, (n_grains + n_pieces - 1) / n_pieces) * grain, f);
}

// 64 bytes of floats: two threads never write to one cache line, and vectors are whole
constexpr int64_t kLineFloats = 16;

struct RowsStep final : Step {
    RowsArgs args;
    Dim n;
    void run(const Kernels& kernels, const Values& values, int, const PoolThread& thread) const override {
        share(thread, value_of(n, values), 1, [&](int64_t begin, int64_t end) { kernels.rows(args, begin, end); });
    }
};

struct NormStep final : Step {
    NormArgs args;
    int64_t chunks_per_row;
    Dim n;
    void run(const Kernels& kernels, const Values& values, int, const PoolThread& thread) const override {
        share(thread, value_of(n, values) * chunks_per_row, 1,
              [&](int64_t begin, int64_t end) { kernels.rms_norm(args, begin, end); });
    }
};

// Phase one quantises the activations, unless the step before has left them in the workspace.
struct MatmulStep final : Step {
    MatmulArgs args;
    ActGroup* acts;
    int64_t thread_floats;  // of scratch
    Dim n;
    int64_t row_bytes;  // of the weight
    bool quantizes;
    int n_phases() const override { return quantizes ? 2 : 1; }

    // Rows of block formats that a thread reads as a few long streams: long enough for the processor's own
    // prefetching, and so many pieces that a thread which is held up leaves work to the others.
    int64_t few_columns_piece(int n_threads) const {
        constexpr int64_t kPieceBytes = int64_t{1} << 18;
        const int64_t by_bytes = kPieceBytes / std::max<int64_t>(1, row_bytes);
        const int64_t by_threads = (args.n_out + 2 * n_threads - 1) / (2 * n_threads);
        return (std::max<int64_t>(1, std::min(by_bytes, by_threads)) + kPanelRows - 1) / kPanelRows * kPanelRows;
    }

    void run(const Kernels& kernels, const Values& values, int phase, const PoolThread& thread) const override {
        MatmulArgs now = args;
        now.n = value_of(n, values);
        now.scratch = args.scratch + thread.index * thread_floats;
        if (quantizes && phase == 0) {
            share(thread, now.n * ((now.n_in + ActGroup::kSize - 1) / ActGroup::kSize), 1,
                  [&](int64_t begin, int64_t end) { kernels.quantize(now.x, acts, now.n, now.n_in, begin, end); });
        } else if (now.n > 0) {
            const auto multiply = [&](int64_t begin, int64_t end) { kernels.matmul(now, begin, end); };
            if (now.n >= kFewColumns) {
                share(thread, now.n_out, kMatmulRows, multiply);
            } else if (is_plain(now.dtype)) {
                share(thread, now.n_out, kPanelRows, multiply);
            } else {
                share_pieces(thread, now.n_out, few_columns_piece(thread.n_threads), multiply);
            }
        }
    }
};

struct RopeStep final : Step {
    RopeArgs args;
    std::vector<float> inv_freq;
    Dim n;
    void run(const Kernels& kernels, const Values& values, int, const PoolThread& thread) const override {
        share(thread, value_of(n, values) * args.n_head, 1,
              [&](int64_t begin, int64_t end) { kernels.rope(args, begin, end); });
    }
};

struct StoreStep final : Step {
    StoreArgs args;
    std::vector<float> inv_freq;
    Dim n;
    void run(const Kernels& kernels, const Values& values, int, const PoolThread& thread) const override {
        share(thread, value_of(n, values) * args.cache.n_kv, 1,
              [&](int64_t begin, int64_t end) { kernels.store_kv(args, begin, end); });
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

    void run(const Kernels& kernels, const Values& values, int phase, const PoolThread& thread) const override {
        AttentionArgs now = args;
        now.n_pages = value_of(n_pages, values);
        const int64_t n_rows = value_of(n, values), n_kv = now.cache.n_kv;
        const int64_t n_chunks = (now.n_pages * now.cache.page_size + kAttentionChunk - 1) / kAttentionChunk;
        if (n_chunks > 1 && is_split(n_rows, n_kv, thread.n_threads)) {
            run_chunks(kernels, now, n_rows, n_chunks, phase, thread);
        } else if (phase == 0) {
            run_rows(kernels, now, n_rows, thread);
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
                    const PoolThread& thread) const {
        const int64_t n_kv = now.cache.n_kv, chunk_floats = attention_partial(now.n_group(), now.cache.head_dim);
        int64_t count = 0, taken = thread.take();
        for (int64_t unit = 0; unit < n_rows * n_kv; unit++) {
            const int64_t row = unit / n_kv, kv = unit % n_kv, stop = now.n_visible[row];
            float* mine = partials + unit * n_chunks * chunk_floats;
            if (phase == 1) {
                if (unit != taken) continue;
                kernels.merge_chunks(now, row, kv, mine);
                taken = thread.take();
                continue;
            }
            for (int64_t chunk = now.mask.start(stop) / kAttentionChunk; chunk * kAttentionChunk < stop; chunk++) {
                if (count++ != taken) continue;
                kernels.attention(now, {row, 1, kv, chunk, mine + chunk * chunk_floats},
                                  scratch + thread.index * thread_floats);
                taken = thread.take();
            }
        }
    }

    void run_rows(const Kernels& kernels, const AttentionArgs& now, int64_t n_rows, const PoolThread& thread) const {
        const int64_t max_rows = std::max<int64_t>(1, max_queries / now.n_group());
        int64_t count = 0, taken = thread.take();
        for (int64_t row = 0, next; row < n_rows; row = next) {
            for (next = row + 1; next < n_rows && next < row + max_rows; next++) {
                if (now.rows[next] != now.rows[row] || now.n_visible[next] != now.n_visible[next - 1] + 1) break;
            }
            for (int64_t kv = 0; kv < now.cache.n_kv; kv++) {
                if (count++ != taken) continue;
                kernels.attention(now, {row, next - row, kv, -1, nullptr}, scratch + thread.index * thread_floats);
                taken = thread.take();
            }
        }
    }
};

// Threads share channels, which have nothing to do with one another: each carries its own from input to input.
struct ConvStep final : Step {
    ConvArgs args;
    Dim n;
    void run(const Kernels& kernels, const Values& values, int, const PoolThread& thread) const override {
        ConvArgs now = args;
        now.n = value_of(n, values);
        share(thread, now.width, kLineFloats, [&](int64_t begin, int64_t end) { kernels.short_conv(now, begin, end); });
    }
};

struct GateStep final : Step {
    GateArgs args;
    int64_t width;
    Dim n;
    void run(const Kernels& kernels, const Values& values, int, const PoolThread& thread) const override {
        share(thread, value_of(n, values) * width, kLineFloats,
              [&](int64_t begin, int64_t end) { kernels.gate(args, begin, end); });
    }
};

struct SoftCapStep final : Step {
    SoftCapArgs args;
    int64_t width;
    Dim n;
    void run(const Kernels& kernels, const Values& values, int, const PoolThread& thread) const override {
        share(thread, value_of(n, values) * width, kLineFloats,
              [&](int64_t begin, int64_t end) { kernels.softcap(args, begin, end); });
    }
};

}  // namespace cpu
