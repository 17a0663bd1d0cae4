// One struct per op: seeded inputs, and the one place that calls the kernels of a table with them.
// What kernels.hpp asks of its callers is met here and nowhere else.
#pragma once

#include "inputs.hpp"

namespace native {

struct MatmulProblem {
    const Format& format;
    int64_t n, n_in, n_out;
    Place place;
    Buffer<float> x, bias, residual;
    Buffer<uint8_t> weight;
    Buffer<cpu::ActGroup> acts;

    MatmulProblem(Random random, const Format& format, int64_t n, int64_t n_in, int64_t n_out, Place place)
        : format(format),
          n(n),
          n_in(n_in),
          n_out(n_out),
          place(place),
          x(normals(random, n * n_in, place)),
          bias(normals(random, n_out, place)),
          residual(normals(random, n * n_out, place)),
          weight(weights(random, format, n_out * n_in, place)),
          acts(format.is_quantized() ? n * n_groups() : 0, place) {}

    int64_t n_groups() const { return (n_in + cpu::ActGroup::kSize - 1) / cpu::ActGroup::kSize; }

    void quantize(const cpu::Kernels& kernels) const {
        if (format.is_quantized()) kernels.quantize({x.data(), nullptr, acts.data(), n, n_in}, 0, n * n_groups());
    }
    // Of activations that quantize() left, rows begin..end of the weight.
    void multiply(const cpu::Kernels& kernels, const Buffer<float>& out, int64_t begin, int64_t end) const {
        const Buffer<float> scratch(cpu::matmul_scratch(n), place);
        kernels.matmul({x.data(), acts.data(), weight.data(), reinterpret_cast<const uint8_t*>(bias.data()),
                        residual.data(), out.data(), scratch.data(), n, n_in, n_out, format.dtype},
                       begin, end);
    }
    // One column alone.
    void multiply_column(const cpu::Kernels& kernels, int64_t col, const Buffer<float>& out) const {
        const Buffer<cpu::ActGroup> own(n_groups(), place);
        const Buffer<float> scratch(cpu::matmul_scratch(1), place);
        const float* row = x.data() + col * n_in;
        if (format.is_quantized()) kernels.quantize({row, nullptr, own.data(), 1, n_in}, 0, n_groups());
        kernels.matmul({row, own.data(), weight.data(), reinterpret_cast<const uint8_t*>(bias.data()),
                        residual.data() + col * n_out, out.data(), scratch.data(), 1, n_in, n_out, format.dtype},
                       0, n_out);
    }
};

// The products of an expert: rows of x and of the result that lie apart, and what results are scaled by.
struct ScatteredProblem {
    MatmulProblem dense;    // the same products in order
    int64_t n_rows;         // of x, and of the result
    Buffer<int32_t> order;  // of each column, its row
    Buffer<float> x, scales;

    ScatteredProblem(Random random, const Format& format, int64_t n, int64_t n_in, int64_t n_out, Place place)
        : dense(Random(random.bits()), format, n, n_in, n_out, place),
          n_rows(2 * n),
          order(n, place),
          x(normals(random, n_rows * n_in, place)),
          scales(normals(random, n_rows, place)) {
        for (int64_t i = 0; i < n; i++) {
            order[i] = static_cast<int32_t>(2 * (n - 1 - i) + random.below(2));
            std::memcpy(x.data() + order[i] * n_in, dense.x.data() + i * n_in, static_cast<size_t>(n_in) * 4);
        }
    }
    // out [n_rows, n_out]
    void run(const cpu::Kernels& kernels, const Buffer<float>& out) const {
        const MatmulProblem& d = dense;
        if (d.format.is_quantized())
            kernels.quantize({x.data(), order.data(), d.acts.data(), d.n, d.n_in}, 0, d.n * d.n_groups());
        const Buffer<float> scratch(cpu::matmul_scratch(d.n), d.place);
        cpu::MatmulArgs args = {x.data(),       d.acts.data(), d.weight.data(), nullptr, nullptr,       out.data(),
                                scratch.data(), d.n,           d.n_in,          d.n_out, d.format.dtype};
        args.x_rows = args.out_rows = order.data();
        args.scales = scales.data();
        kernels.matmul(args, 0, d.n_out);
    }
    // The same from the products in order.
    void scatter(const Buffer<float>& products, const Buffer<float>& out) const {
        for (int64_t i = 0; i < dense.n; i++) {
            for (int64_t row = 0; row < dense.n_out; row++)
                out[order[i] * dense.n_out + row] = products[i * dense.n_out + row] * scales[order[i]];
        }
    }
    void multiply_in_order(const cpu::Kernels& kernels, const Buffer<float>& out) const {
        const MatmulProblem& d = dense;
        d.quantize(kernels);
        const Buffer<float> scratch(cpu::matmul_scratch(d.n), d.place);
        kernels.matmul({d.x.data(), d.acts.data(), d.weight.data(), nullptr, nullptr, out.data(), scratch.data(), d.n,
                        d.n_in, d.n_out, d.format.dtype},
                       0, d.n_out);
    }
};

struct RowsProblem {
    const Format& format;
    int64_t n, width;
    float scale = 1.0f;
    Buffer<uint8_t> table;
    Buffer<int32_t> ids;

    RowsProblem(Random random, const Format& format, int64_t n, int64_t width, int64_t n_table, Place place)
        : format(format), n(n), width(width), table(weights(random, format, n_table * width, place)), ids(n, place) {
        for (int64_t i = 0; i < n; i++) ids[i] = static_cast<int32_t>(random.below(n_table));
    }
    void run(const cpu::Kernels& kernels, const Buffer<float>& out) const {
        kernels.rows({table.data(), ids.data(), out.data(), width, scale, format.dtype}, 0, n);
    }
    void dequantize(const cpu::Kernels& kernels, const Buffer<float>& out) const {
        kernels.dequantize(table.data(), out.data(), out.size(), format.dtype);
    }
};

struct NormProblem {
    int64_t n, chunk;
    bool has_residual;
    Buffer<float> x, weight, residual;

    NormProblem(Random random, int64_t n, int64_t chunk, bool has_residual, Place place)
        : n(n),
          chunk(chunk),
          has_residual(has_residual),
          x(normals(random, n * chunk, place)),
          weight(normals(random, chunk, place)),
          residual(normals(random, n * chunk, place)) {}
    void run(const cpu::Kernels& kernels, const Buffer<float>& out) const {
        kernels.rms_norm({x.data(), reinterpret_cast<const uint8_t*>(weight.data()),
                          has_residual ? residual.data() : nullptr, out.data(), chunk, 1e-5f},
                         0, n);
    }
};

// Inverse frequencies without pow(): halved every pair, which is as good a spread as any.
inline Buffer<float> frequencies(int64_t n_pair, Place place) {
    Buffer<float> made(n_pair, place);
    for (int64_t i = 0; i < n_pair; i++) made[i] = 1.0f / static_cast<float>(1 + i * i);
    return made;
}

struct RopeProblem {
    int64_t n, n_head, head_dim;
    bool is_neox;
    Buffer<float> x, inv_freq;
    Buffer<int32_t> positions;

    RopeProblem(Random random, int64_t n, int64_t n_head, int64_t head_dim, int64_t n_pair, bool is_neox, Place place)
        : n(n),
          n_head(n_head),
          head_dim(head_dim),
          is_neox(is_neox),
          x(normals(random, n * n_head * head_dim, place)),
          inv_freq(frequencies(n_pair, place)),
          positions(n, place) {
        for (int64_t i = 0; i < n; i++) positions[i] = static_cast<int32_t>(random.below(1 << 20));
    }
    cpu::Rotation rotation() const { return {inv_freq.data(), inv_freq.size(), 0.9f, is_neox}; }
    void run(const cpu::Kernels& kernels, const Buffer<float>& out) const {
        kernels.rope({x.data(), positions.data(), out.data(), n_head, head_dim, rotation()}, 0, n * n_head);
    }
};

constexpr cpu::DType kCacheTypes[] = {cpu::DType::F32, cpu::DType::F16, cpu::DType::Q8_0};

inline const char* name_of(cpu::DType dtype) {
    for (const Format& format : kFormats) {
        if (format.dtype == dtype) return format.name;
    }
    return "?";
}

// Keys are rotated and written with the values, to the cells that `cells` names.
struct StoreProblem {
    cpu::CacheShape cache;
    RopeProblem k;
    Buffer<float> v;
    Buffer<int32_t> cells;
    int64_t n_pages;

    StoreProblem(Random random, int64_t n, const cpu::CacheShape& cache, bool is_neox, Place place)
        : cache(cache),
          k(Random(random.bits()), n, cache.n_kv, cache.head_dim, cache.head_dim / 2, is_neox, place),
          v(normals(random, n * cache.n_kv * cache.head_dim, place)),
          cells(n, place),
          n_pages((2 * n + cache.page_size) / cache.page_size) {
        for (int64_t i = 0; i < n; i++) cells[i] = static_cast<int32_t>(2 * i + random.below(2));
    }
    int64_t state_bytes() const { return n_pages * cache.n_kv * cache.region_bytes(); }
    void run(const cpu::Kernels& kernels, const Buffer<uint8_t>& k_state, const Buffer<uint8_t>& v_state) const {
        kernels.store_kv({k.x.data(), v.data(), k.positions.data(), cells.data(), k_state.data(), v_state.data(), cache,
                          true, k.rotation()},
                         0, k.n * cache.n_kv);
    }
};

// n_rows successive rows of the second of two sequences, of which n_before cells were there already.
struct AttentionShape {
    int64_t n_rows, n_head, n_kv, head_dim, n_before, page_size;
    cpu::Mask mask;
    float softcap;
    int64_t reach = -1;     // of a bias, where there is one
    bool sees_all = false;  // each row all cells, also those behind it
};

// Cells that no row may see are NaN.
struct AttentionProblem {
    AttentionShape shape;
    cpu::CacheShape cache;
    Place place;
    int64_t n_pages;  // of a sequence
    Buffer<float> q;
    Buffer<uint8_t> k_state, v_state;
    Buffer<int32_t> tables, rows, n_visible, positions;
    Buffer<float> bias;

    AttentionProblem(Random random, const AttentionShape& shape, cpu::DType dtype, Place place)
        : shape(shape),
          cache{shape.n_kv, shape.head_dim, shape.page_size, dtype},
          place(place),
          n_pages((shape.n_before + shape.n_rows + shape.page_size - 1) / shape.page_size),
          q(normals(random, out_n(), place)),
          k_state(state_bytes(), place),
          v_state(state_bytes(), place),
          tables(2 * n_pages, place),
          rows(shape.n_rows, place),
          n_visible(shape.n_rows, place),
          positions(shape.n_rows, place),
          bias(shape.reach < 0 ? 0 : (2 * shape.reach + 1) * shape.n_head, place) {
        for (int64_t i = 0; i < bias.size(); i++) bias[i] = 3.0f * random.normal();
        for (int64_t i = 0; i < 2 * n_pages; i++) {
            const int64_t other = random.below(i + 1);
            tables[i] = tables[other];
            tables[other] = static_cast<int32_t>(i);
        }
        for (int64_t i = 0; i < shape.n_rows; i++) {
            rows[i] = 1;
            positions[i] = static_cast<int32_t>(shape.n_before + i);
            n_visible[i] = static_cast<int32_t>(shape.n_before + (shape.sees_all ? shape.n_rows : i + 1));
        }
        fill(random);
    }
    int64_t out_n() const { return shape.n_rows * shape.n_head * shape.head_dim; }

    // At most max_rows rows at a time.
    void run(const cpu::Kernels& kernels, const Buffer<float>& out, int64_t max_rows) const {
        const cpu::AttentionArgs now = args(out);
        const Buffer<float> scratch(cpu::attention_scratch(cache, max_rows * now.n_group(), n_bias()), place);
        for (int64_t row = 0; row < shape.n_rows; row += max_rows) {
            const int64_t n = shape.n_rows - row < max_rows ? shape.n_rows - row : max_rows;
            for (int64_t kv = 0; kv < shape.n_kv; kv++)
                kernels.attention(now, {row, n, kv, -1, nullptr}, scratch.data());
        }
    }
    // Row by row, the chunks of each by themselves, as several threads do it.
    void run_chunks(const cpu::Kernels& kernels, const Buffer<float>& out) const {
        const cpu::AttentionArgs now = args(out);
        const Buffer<float> scratch(cpu::attention_scratch(cache, now.n_group(), n_bias()), place);
        const int64_t n_chunks = (n_pages * shape.page_size + cpu::kAttentionChunk - 1) / cpu::kAttentionChunk;
        const int64_t chunk_floats = cpu::attention_partial(now.n_group(), shape.head_dim);
        const Buffer<float> partials(n_chunks * chunk_floats, place);
        for (int64_t row = 0; row < shape.n_rows; row++) {
            const int64_t stop = n_visible[row], start = shape.mask.start(stop);
            for (int64_t kv = 0; kv < shape.n_kv; kv++) {
                for (int64_t chunk = start / cpu::kAttentionChunk; chunk * cpu::kAttentionChunk < stop; chunk++)
                    kernels.attention(now, {row, 1, kv, chunk, partials.data() + chunk * chunk_floats}, scratch.data());
                kernels.merge_chunks(now, row, kv, partials.data());
            }
        }
    }

private:
    int64_t state_bytes() const { return 2 * n_pages * cache.n_kv * cache.region_bytes(); }
    int64_t n_bias() const { return shape.reach < 0 ? 0 : shape.n_head / shape.n_kv * cpu::bias_floats(shape.reach); }
    cpu::AttentionArgs args(const Buffer<float>& out) const {
        const float scale = 1.0f / static_cast<float>(shape.head_dim / 8 + 1);
        return {
            q.data(),
            k_state.data(),
            v_state.data(),
            tables.data(),
            rows.data(),
            n_visible.data(),
            out.data(),
            cache,
            shape.n_head,
            n_pages,
            shape.mask,
            scale,
            shape.softcap,
            {},
            {shape.reach < 0 ? nullptr : reinterpret_cast<const uint8_t*>(bias.data()), positions.data(), shape.reach}};
    }
    void fill(Random& random) const {
        const int64_t n = shape.n_before + shape.n_rows;
        const Buffer<float> k = normals(random, n * shape.n_kv * shape.head_dim, place),
                            v = normals(random, k.size(), place);
        const Buffer<int32_t> cells(n, place);
        for (int64_t i = 0; i < n; i++)
            cells[i] =
                static_cast<int32_t>(tables[n_pages + i / shape.page_size] * shape.page_size + i % shape.page_size);
        cpu::kGeneric.store_kv(
            {k.data(), v.data(), cells.data(), cells.data(), k_state.data(), v_state.data(), cache, false, {}}, 0,
            n * shape.n_kv);
    }
};

// Two sequences: one stays in its row of the state, one leaves another than it goes on from.
struct ConvProblem {
    static constexpr int64_t kRows = 3;
    int64_t n, width, n_taps;
    Buffer<float> x, weight, before;
    Buffer<int32_t> rows, sources, targets;

    ConvProblem(Random random, int64_t n, int64_t width, int64_t n_taps, Place place)
        : n(n),
          width(width),
          n_taps(n_taps),
          x(normals(random, n * 3 * width, place)),
          weight(normals(random, width * n_taps, place)),
          before(normals(random, kRows * (n_taps - 1) * width, place)),
          rows(n, place),
          sources(2, place),
          targets(2, place) {
        for (int64_t i = 0; i < n; i++) rows[i] = i < n / 3 ? 0 : 1;
        sources[0] = 0, sources[1] = 1;
        targets[0] = 0, targets[1] = 2;
    }
    // state: a copy of `before`
    void run(const cpu::Kernels& kernels, const Buffer<float>& state, const Buffer<float>& out) const {
        const auto* taps = reinterpret_cast<const uint8_t*>(weight.data());
        kernels.short_conv(
            {x.data(), taps, state.data(), rows.data(), sources.data(), targets.data(), out.data(), n, width, n_taps},
            0, width);
    }
};

struct GateKind {
    cpu::Activation activation;
    bool has_up;
    const char* name;
};

constexpr GateKind kGates[] = {
    {cpu::Activation::Silu, true, "silu"},        {cpu::Activation::Gelu, true, "gelu"},
    {cpu::Activation::Relu, true, "relu"},        {cpu::Activation::Silu, false, "silu_alone"},
    {cpu::Activation::Gelu, false, "gelu_alone"}, {cpu::Activation::Relu, false, "relu_alone"},
};

struct GateProblem {
    GateKind kind;
    Buffer<float> gate, up;

    GateProblem(Random random, int64_t n, const GateKind& kind, Place place)
        : kind(kind), gate(normals(random, n, place)), up(normals(random, n, place)) {
        for (int64_t i = 0; i < n; i++) gate[i] *= 8.0f;
        if (n > 2) gate[1] = -200.0f, gate[2] = 200.0f;
    }
    void run(const cpu::Kernels& kernels, const Buffer<float>& out) const {
        kernels.gate({gate.data(), kind.has_up ? up.data() : nullptr, out.data(), kind.activation}, 0, out.size());
    }
};

// Logits of which some are equal, some not finite.
struct RouteProblem {
    int64_t n, n_expert, n_used;
    cpu::Gating gating;
    Buffer<float> logits;

    RouteProblem(Random random, int64_t n, int64_t n_expert, int64_t n_used, cpu::Gating gating, Place place)
        : n(n), n_expert(n_expert), n_used(n_used), gating(gating), logits(normals(random, n * n_expert, place)) {
        for (int64_t i = 0; i + 5 < n * n_expert; i += 7) logits[i + 5] = logits[i];
        for (int64_t i = 0; i < n_expert; i++) logits[i] = i % 3 == 0 ? __builtin_nanf("") : logits[i];
    }
    void run(const cpu::Kernels& kernels, const Buffer<int32_t>& ids, const Buffer<float>& weights) const {
        kernels.route({logits.data(), ids.data(), weights.data(), n_expert, n_used, gating}, 0, n);
    }
};

struct SlotSumProblem {
    static constexpr int64_t kSlots = 3;
    Buffer<float> x, residual;

    SlotSumProblem(Random random, int64_t n, Place place)
        : x(normals(random, kSlots * n, place)), residual(normals(random, n, place)) {}
    void run(const cpu::Kernels& kernels, const Buffer<float>& out) const {
        kernels.slot_sum({x.data(), residual.data(), out.data(), kSlots, out.size()}, 0, 1);
    }
};

struct SoftCapProblem {
    Buffer<float> x;

    SoftCapProblem(Random random, int64_t n, Place place) : x(normals(random, n, place)) {
        for (int64_t i = 0; i < n; i++) x[i] *= 40.0f;
    }
    void run(const cpu::Kernels& kernels, const Buffer<float>& out) const {
        kernels.softcap({x.data(), out.data(), 30.0f}, 0, out.size());
    }
};

}  // namespace native
