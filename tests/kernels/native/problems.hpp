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
        if (format.is_quantized()) kernels.quantize(x.data(), acts.data(), n, n_in, 0, n * n_groups());
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
        if (format.is_quantized()) kernels.quantize(row, own.data(), 1, n_in, 0, n_groups());
        kernels.matmul({row, own.data(), weight.data(), reinterpret_cast<const uint8_t*>(bias.data()),
                        residual.data() + col * n_out, out.data(), scratch.data(), 1, n_in, n_out, format.dtype},
                       0, n_out);
    }
};

struct RowsProblem {
    const Format& format;
    int64_t n, width;
    Buffer<uint8_t> table;
    Buffer<int32_t> ids;

    RowsProblem(Random random, const Format& format, int64_t n, int64_t width, int64_t n_table, Place place)
        : format(format), n(n), width(width), table(weights(random, format, n_table * width, place)), ids(n, place) {
        for (int64_t i = 0; i < n; i++) ids[i] = static_cast<int32_t>(random.below(n_table));
    }
    void run(const cpu::Kernels& kernels, const Buffer<float>& out) const {
        kernels.rows({table.data(), ids.data(), out.data(), width, format.dtype}, 0, n);
    }
    void dequantize(const cpu::Kernels& kernels, const Buffer<float>& out) const {
        kernels.dequantize(table.data(), out.data(), out.size(), format.dtype);
    }
};

struct NormProblem {
    int64_t n, chunk;
    Buffer<float> x, weight;

    NormProblem(Random random, int64_t n, int64_t chunk, Place place)
        : n(n), chunk(chunk), x(normals(random, n * chunk, place)), weight(normals(random, chunk, place)) {}
    void run(const cpu::Kernels& kernels, const Buffer<float>& out) const {
        kernels.rms_norm({x.data(), reinterpret_cast<const uint8_t*>(weight.data()), out.data(), chunk, 1e-5f}, 0, n);
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

// Keys are rotated and written with the values, to the cells that `cells` names.
struct StoreProblem {
    RopeProblem k;
    bool is_half;
    int64_t n_cells;
    Buffer<float> v;
    Buffer<int32_t> cells;

    StoreProblem(Random random, int64_t n, int64_t n_head, int64_t head_dim, bool is_neox, bool is_half, Place place)
        : k(Random(random.bits()), n, n_head, head_dim, head_dim / 2, is_neox, place),
          is_half(is_half),
          n_cells(2 * n + 1),
          v(normals(random, n * n_head * head_dim, place)),
          cells(n, place) {
        const int64_t first = random.below(n_cells);  // steps of 2 meet every one of an odd number of cells once
        for (int64_t i = 0; i < n; i++) cells[i] = static_cast<int32_t>((first + 2 * i) % n_cells);
    }
    int64_t state_bytes() const { return n_cells * k.n_head * k.head_dim * (is_half ? 2 : 4); }
    void run(const cpu::Kernels& kernels, const Buffer<uint8_t>& k_state, const Buffer<uint8_t>& v_state) const {
        kernels.store_kv({k.x.data(), v.data(), k.positions.data(), cells.data(), k_state.data(), v_state.data(), k.n,
                          k.n_head, k.head_dim, is_half, true, k.rotation()},
                         0, k.n_head);
    }
};

struct AttentionShape {
    int64_t n, n_head, n_kv, head_dim, n_visible, window;
    float softcap;
};

// Rows of two sequences; cells that no row sees are NaN.
struct AttentionProblem {
    AttentionShape shape;
    bool is_half;
    Place place;
    int64_t n_pages;
    Buffer<float> q;
    Buffer<uint8_t> k_state, v_state;
    Buffer<int32_t> tables, rows, n_visible;

    AttentionProblem(Random random, const AttentionShape& shape, bool is_half, Place place)
        : shape(shape),
          is_half(is_half),
          place(place),
          n_pages((shape.n_visible + kPageCells - 1) / kPageCells),
          q(normals(random, shape.n * shape.n_head * shape.head_dim, place)),
          k_state(state_bytes(), place),
          v_state(state_bytes(), place),
          tables(2 * n_pages, place),
          rows(shape.n, place),
          n_visible(shape.n, place) {
        for (int64_t i = 0; i < 2 * n_pages; i++) {
            const int64_t other = random.below(i + 1);
            tables[i] = tables[other];
            tables[other] = static_cast<int32_t>(i);
        }
        for (int64_t i = 0; i < shape.n; i++) {
            rows[i] = static_cast<int32_t>(i % 2);
            n_visible[i] = static_cast<int32_t>(shape.n_visible - (i > 0 ? random.below(shape.n_visible) : 0));
        }
        for (int64_t i = 0; i < 2 * shape.n_visible; i++) fill_cell(random, i % 2, i / 2);
    }

    void run(const cpu::Kernels& kernels, const Buffer<float>& out) const {
        const Buffer<float> scratch(cpu::attention_scratch(shape.n_head / shape.n_kv, shape.head_dim), place);
        const float scale = 1.0f / static_cast<float>(shape.head_dim / 8 + 1);
        for (int64_t item = 0; item < shape.n * shape.n_kv; item++) {
            kernels.attention({q.data(), k_state.data(), v_state.data(), tables.data(), rows.data(), n_visible.data(),
                               out.data(), shape.n_head, shape.n_kv, shape.head_dim, kPageCells, n_pages, shape.window,
                               scale, shape.softcap, is_half},
                              item, scratch.data());
        }
    }

private:
    static constexpr int64_t kPageCells = 16;
    int64_t cell_n() const { return shape.n_kv * shape.head_dim; }
    int64_t state_bytes() const { return 2 * n_pages * kPageCells * cell_n() * (is_half ? 2 : 4); }
    void fill_cell(Random& random, int64_t sequence, int64_t position) const {
        const int64_t page = tables[sequence * n_pages + position / kPageCells];
        const int64_t first = (page * kPageCells + position % kPageCells) * cell_n();
        for (const Buffer<uint8_t>* state : {&k_state, &v_state}) {
            for (int64_t i = first; i < first + cell_n(); i++) {
                const uint16_t half = random.half();
                const float value = random.normal();
                if (is_half) {
                    std::memcpy(state->data() + 2 * i, &half, 2);
                } else {
                    std::memcpy(state->data() + 4 * i, &value, 4);
                }
            }
        }
    }
};

struct GateProblem {
    Buffer<float> gate, up;

    GateProblem(Random random, int64_t n, Place place)
        : gate(normals(random, n, place)), up(normals(random, n, place)) {
        for (int64_t i = 0; i < n; i++) gate[i] *= 8.0f;
        if (n > 2) gate[1] = -200.0f, gate[2] = 200.0f;
    }
    void run(const cpu::Kernels& kernels, const Buffer<float>& out, int64_t begin, int64_t end) const {
        kernels.swiglu(gate.data(), up.data(), out.data(), begin, end);
    }
};

}  // namespace native
