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

inline int64_t balanced_piece(int64_t n, int64_t grain, int n_threads) {
    const int64_t n_pieces = 16 * n_threads, n_grains = (n + grain - 1) / grain;
    return std::max<int64_t>(1, (n_grains + n_pieces - 1) / n_pieces) * grain;
}

// The same with pieces enough that threads end together, few enough that taking one costs nothing; each but the last
// is a multiple of `grain`.
template <class F>
void share(const PoolThread& thread, int64_t n, int64_t grain, F f) {
    share_pieces(thread, n, balanced_piece(n, grain, thread.n_threads), f);
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

// Rows of a weight, row_bytes long, that a thread takes at once.  Few columns of a block format: rows that are read as
// a few long streams, long enough for the processor's own prefetching, and so many pieces that a thread which is held
// up leaves work to the others.
inline int64_t product_piece(const MatmulArgs& a, int64_t row_bytes, int n_threads) {
    if (a.n >= kFewColumns) return balanced_piece(a.n_out, kMatmulRows, n_threads);
    if (is_plain(a.dtype)) return balanced_piece(a.n_out, kPanelRows, n_threads);
    constexpr int64_t kPieceBytes = int64_t{1} << 18;
    const int64_t by_bytes = kPieceBytes / std::max<int64_t>(1, row_bytes);
    const int64_t by_threads = (a.n_out + 2 * n_threads - 1) / (2 * n_threads);
    return (std::max<int64_t>(1, std::min(by_bytes, by_threads)) + kPanelRows - 1) / kPanelRows * kPanelRows;
}

constexpr int64_t kQuantizePiece = 32;  // groups
constexpr int64_t act_groups(int64_t n_in) { return (n_in + ActGroup::kSize - 1) / ActGroup::kSize; }

// Phase one quantises the activations, unless the step before has left them in the workspace.
struct MatmulStep final : Step {
    MatmulArgs args;
    ActGroup* acts;
    int64_t thread_floats;  // of scratch
    Dim n;
    int64_t row_bytes;  // of the weight
    bool quantizes;
    int n_phases() const override { return quantizes ? 2 : 1; }

    void run(const Kernels& kernels, const Values& values, int phase, const PoolThread& thread) const override {
        MatmulArgs now = args;
        now.n = value_of(n, values);
        now.scratch = args.scratch + thread.index * thread_floats;
        if (quantizes && phase == 0) {
            const QuantizeArgs what = {now.x, nullptr, acts, now.n, now.n_in};
            share(thread, now.n * act_groups(now.n_in), 1,
                  [&](int64_t begin, int64_t end) { kernels.quantize(what, begin, end); });
        } else if (now.n > 0) {
            share_pieces(thread, now.n_out, product_piece(now, row_bytes, thread.n_threads),
                         [&](int64_t begin, int64_t end) { kernels.matmul(now, begin, end); });
        }
    }
};

struct RouteStep final : Step {
    RouteArgs args;
    Dim n;
    void run(const Kernels& kernels, const Values& values, int, const PoolThread& thread) const override {
        share(thread, value_of(n, values), 1, [&](int64_t begin, int64_t end) { kernels.route(args, begin, end); });
    }
};

// A product for each expert that some slot names, with the columns that name it: their numbers, counted through the
// slots of all rows, are sorted by expert in phase one, quantised in that order in phase two, and multiplied in phase
// three.  The step before has done the first two where it saw the same activations through the same ids.
struct ExpertStep final : Step {
    MatmulArgs args;  // of the first expert
    ActGroup* acts;   // of each expert its own [groups, columns]
    const int32_t* ids;
    int32_t *ends, *x_rows, *out_rows;  // where each expert's columns end; of each column its row
    int64_t thread_floats, n_expert, n_used, expert_bytes, row_bytes;
    bool is_shared;  // all slots of a row see the same activations
    bool prepares;
    Dim n;

    int n_phases() const override { return prepares ? 3 : 1; }

    void run(const Kernels& kernels, const Values& values, int phase, const PoolThread& thread) const override {
        const int64_t n_slots = value_of(n, values) * n_used;
        if (prepares && phase == 0) {
            if (thread.take() == 0) sort(n_slots);
        } else if (prepares && phase == 1) {
            if (!is_plain(args.dtype)) quantize(kernels, thread);
        } else {
            multiply(kernels, thread);
        }
    }

    // Words for the order of n_slots columns.
    static constexpr int64_t order_words(int64_t n_expert, int64_t n_slots) { return n_expert + 2 * n_slots; }

private:
    // By counting: within an expert the order of slots stays.
    void sort(int64_t n_slots) const {
        std::fill_n(ends, n_expert, 0);
        for (int64_t slot = 0; slot < n_slots; slot++) ends[ids[slot]]++;
        int32_t begin = 0;
        for (int64_t expert = 0; expert < n_expert; expert++) begin += std::exchange(ends[expert], begin);
        for (int64_t slot = 0; slot < n_slots; slot++) {
            const int32_t col = ends[ids[slot]]++;
            out_rows[col] = static_cast<int32_t>(slot);
            x_rows[col] = static_cast<int32_t>(is_shared ? slot / n_used : slot);
        }
    }

    // Calls f(args of an expert, begin, end) for the pieces of its work that this thread takes; size_of(args) gives
    // the work and a piece of it.
    template <class Size, class F>
    void share_experts(const PoolThread& thread, Size size_of, F f) const {
        int64_t count = 0, taken = thread.take();
        for (int64_t expert = 0; expert < n_expert; expert++) {
            const int64_t col = expert > 0 ? ends[expert - 1] : 0;
            MatmulArgs now = args;
            now.n = ends[expert] - col;
            if (now.n == 0) continue;
            now.acts = acts + col * act_groups(now.n_in);
            now.weight += expert * expert_bytes;
            now.scratch += thread.index * thread_floats;
            now.x_rows = x_rows + col;
            now.out_rows = out_rows + col;
            const auto [size, piece] = size_of(now);
            for (int64_t begin = 0; begin < size; begin += piece) {
                if (count++ != taken) continue;
                f(now, begin, std::min(size, begin + piece));
                taken = thread.take();
            }
        }
    }

    void quantize(const Kernels& kernels, const PoolThread& thread) const {
        share_experts(
            thread, [](const MatmulArgs& now) { return std::pair{now.n * act_groups(now.n_in), kQuantizePiece}; },
            [&](const MatmulArgs& now, int64_t begin, int64_t end) {
                ActGroup* mine = acts + (now.acts - acts);  // which is ours to write
                kernels.quantize({now.x, now.x_rows, mine, now.n, now.n_in}, begin, end);
            });
    }

    void multiply(const Kernels& kernels, const PoolThread& thread) const {
        share_experts(
            thread,
            [&](const MatmulArgs& now) {
                return std::pair{now.n_out, product_piece(now, row_bytes, thread.n_threads)};
            },
            [&](const MatmulArgs& now, int64_t begin, int64_t end) { kernels.matmul(now, begin, end); });
    }
};

struct SlotSumStep final : Step {
    SlotSumArgs args;
    Dim n;
    void run(const Kernels& kernels, const Values& values, int, const PoolThread& thread) const override {
        share(thread, value_of(n, values), 1, [&](int64_t begin, int64_t end) { kernels.slot_sum(args, begin, end); });
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

    // Of the item that begins with a row, see AttentionItem.
    static int64_t end_of_item(const AttentionArgs& now, int64_t row, int64_t limit) {
        int64_t next = row + 1, step = -1;
        for (; next < limit && now.rows[next] == now.rows[row]; next++) {
            const int64_t more = now.n_visible[next] - now.n_visible[next - 1];
            if (step == -1) step = more;
            if (more != step || more < 0 || more > 1) break;
        }
        return next;
    }

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
            next = end_of_item(now, row, std::min(n_rows, row + max_rows));
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
