// The Python face: a builder of segments (addresses and dimensions come resolved from backend.py, which has
// checked them), committed memory, dequantisation for tests, and the sampler.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include <sys/mman.h>

#include <algorithm>
#include <new>
#include <stdexcept>

#include "isa.hpp"
#include "limits.hpp"
#include "pages.hpp"
#include "sampler.hpp"
#include "segment.hpp"
#include "steps.hpp"
#include "worker_module.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace cpu {
namespace {

using Address = uintptr_t;  // 0: absent
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ConstBytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>, nb::c_contig>;
// (inv_freq, magnitude, is_neox)
using RotationIn = std::tuple<std::vector<float>, float, bool>;

// (n_kv, head_dim, page_size, dtype)
using CacheIn = std::tuple<int64_t, int64_t, int64_t, int>;

CacheShape cache_of(const CacheIn& in) {
    return {std::get<0>(in), std::get<1>(in), std::get<2>(in), static_cast<DType>(std::get<3>(in))};
}

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

const Kernels& kernels_named(const std::string& name) {
    for (const Kernels* kernels : available_kernels()) {
        if (name == kernels->name) return *kernels;
    }
    throw std::invalid_argument("no kernels for " + name);
}

Rotation rotation_of(const RotationIn& in, std::vector<float>& keep) {
    keep = std::get<0>(in);
    return {keep.data(), static_cast<int64_t>(keep.size()), std::get<1>(in), std::get<2>(in)};
}

void add_rows(Segment& s, Address table, Address ids, Address out, int64_t width, float scale, int dtype, Dim n) {
    auto step = std::make_unique<RowsStep>();
    step->args = {at<uint8_t>(table), at<int32_t>(ids), at<float>(out), width, scale, static_cast<DType>(dtype)};
    step->n = n;
    s.add(std::move(step));
}

void add_rms_norm(Segment& s, Address x, Address weight, Address residual, Address out, int64_t width, int64_t chunk,
                  float eps, Dim n) {
    auto step = std::make_unique<NormStep>();
    step->args = {at<float>(x), at<uint8_t>(weight), at<float>(residual), at<float>(out), chunk, eps};
    step->chunks_per_row = width / chunk;
    step->n = n;
    s.add(std::move(step));
}

void add_matmul(Segment& s, Address x, Address weight, Address bias, Address residual, Address out, Address scratch,
                Address acts, int64_t thread_floats, int64_t n_in, int64_t n_out, int dtype, int64_t row_bytes,
                bool quantizes, Dim n) {
    auto step = std::make_unique<MatmulStep>();
    step->acts = at<ActGroup>(acts);
    step->args = {at<float>(x),
                  step->acts,
                  at<uint8_t>(weight),
                  at<uint8_t>(bias),
                  at<float>(residual),
                  at<float>(out),
                  at<float>(scratch),
                  0,
                  n_in,
                  n_out,
                  static_cast<DType>(dtype)};
    step->thread_floats = thread_floats;
    step->n = n;
    step->row_bytes = row_bytes;
    step->quantizes = quantizes;
    s.add(std::move(step));
}

void add_rope(Segment& s, Address x, Address positions, Address out, int64_t n_head, int64_t head_dim,
              const RotationIn& rotation, Dim n) {
    auto step = std::make_unique<RopeStep>();
    const Rotation turn = rotation_of(rotation, step->inv_freq);
    step->args = {at<float>(x), at<int32_t>(positions), at<float>(out), n_head, head_dim, turn};
    step->n = n;
    s.add(std::move(step));
}

void add_store_kv(Segment& s, Address k, Address v, Address positions, Address cells, Address k_state, Address v_state,
                  const CacheIn& cache, const RotationIn& rotation, Dim n) {
    auto step = std::make_unique<StoreStep>();
    const Rotation turn = rotation_of(rotation, step->inv_freq);
    step->args = {at<float>(k),       at<float>(v),         at<int32_t>(positions),
                  at<int32_t>(cells), at<uint8_t>(k_state), at<uint8_t>(v_state),
                  cache_of(cache),    turn.n_pair > 0,      turn};
    step->n = n;
    s.add(std::move(step));
}

// The largest number of queries an item has when there are n_rows rows at most.
int64_t item_queries(int64_t n_group, int64_t n_rows) {
    return std::max(n_group, std::min(kAttentionQueries / n_group, n_rows) * n_group);
}

// Of scratch.
int64_t thread_floats(const CacheShape& cache, int64_t n_group, int64_t max_rows, bool has_bias, int64_t reach) {
    return attention_scratch(cache, item_queries(n_group, max_rows), has_bias ? n_group * bias_floats(reach) : 0);
}

void add_attention(Segment& s, Address q, Address k_state, Address v_state, Address tables, Address rows,
                   Address n_visible, Address out, Address workspace, int64_t n_head, const CacheIn& cache,
                   int64_t window, int64_t chunk, float scale, float softcap, float temperature,
                   int64_t temperature_length, Address bias, Address positions, int64_t reach, int64_t max_rows, Dim n,
                   Dim n_pages) {
    auto step = std::make_unique<AttentionStep>();
    step->args = {at<float>(q),
                  at<uint8_t>(k_state),
                  at<uint8_t>(v_state),
                  at<int32_t>(tables),
                  at<int32_t>(rows),
                  at<int32_t>(n_visible),
                  at<float>(out),
                  cache_of(cache),
                  n_head,
                  0,
                  {window, chunk},
                  scale,
                  softcap,
                  {temperature, temperature_length},
                  {at<uint8_t>(bias), at<int32_t>(positions), reach}};
    step->max_queries = item_queries(step->args.n_group(), max_rows);
    step->thread_floats = thread_floats(step->args.cache, step->args.n_group(), max_rows, bias != 0, reach);
    step->scratch = at<float>(workspace);
    step->partials = step->scratch + s.n_threads() * step->thread_floats;
    step->n = n;
    step->n_pages = n_pages;
    s.add(std::move(step));
}

int64_t attention_workspace_bytes(const CacheIn& cache, int64_t n_group, int64_t max_rows, int64_t max_cells,
                                  bool has_bias, int64_t reach, int64_t n_threads) {
    const CacheShape shape = cache_of(cache);
    const int64_t floats = n_threads * thread_floats(shape, n_group, max_rows, has_bias, reach) +
                           AttentionStep::partial_floats(shape, n_group, max_rows, max_cells, n_threads);
    return floats * static_cast<int64_t>(sizeof(float));
}

void add_gate(Segment& s, Address gate, Address up, Address out, int activation, int64_t width, Dim n) {
    auto step = std::make_unique<GateStep>();
    step->args = {at<float>(gate), at<float>(up), at<float>(out), static_cast<Activation>(activation)};
    step->width = width;
    step->n = n;
    s.add(std::move(step));
}

void add_short_conv(Segment& s, Address x, Address weight, Address state, Address rows, Address sources,
                    Address targets, Address out, int64_t width, int64_t n_taps, Dim n) {
    auto step = std::make_unique<ConvStep>();
    step->args = {at<float>(x),
                  at<uint8_t>(weight),
                  at<float>(state),
                  at<int32_t>(rows),
                  at<int32_t>(sources),
                  at<int32_t>(targets),
                  at<float>(out),
                  0,
                  width,
                  n_taps};
    step->n = n;
    s.add(std::move(step));
}

void add_route(Segment& s, Address logits, Address ids, Address weights, int64_t n_expert, int64_t n_used, int gating,
               Dim n) {
    auto step = std::make_unique<RouteStep>();
    step->args = {at<float>(logits), at<int32_t>(ids), at<float>(weights),
                  n_expert,          n_used,           static_cast<Gating>(gating)};
    step->n = n;
    s.add(std::move(step));
}

void add_experts(Segment& s, Address x, Address weight, Address ids, Address scales, Address out, Address scratch,
                 Address acts, Address order, int64_t thread_floats, int64_t n_in, int64_t n_out, int64_t n_expert,
                 int64_t n_used, int64_t max_slots, int dtype, int64_t row_bytes, bool is_shared, bool prepares,
                 Dim n) {
    auto step = std::make_unique<ExpertStep>();
    step->args = {.x = at<float>(x),
                  .acts = nullptr,
                  .weight = at<uint8_t>(weight),
                  .bias = nullptr,
                  .residual = nullptr,
                  .out = at<float>(out),
                  .scratch = at<float>(scratch),
                  .n = 0,
                  .n_in = n_in,
                  .n_out = n_out,
                  .dtype = static_cast<DType>(dtype),
                  .scales = at<float>(scales)};
    step->acts = at<ActGroup>(acts);
    step->ids = at<int32_t>(ids);
    step->ends = at<int32_t>(order);
    step->x_rows = step->ends + n_expert;
    step->out_rows = step->x_rows + max_slots;
    step->thread_floats = thread_floats;
    step->n_expert = n_expert;
    step->n_used = n_used;
    step->expert_bytes = n_out * row_bytes;
    step->row_bytes = row_bytes;
    step->is_shared = is_shared;
    step->prepares = prepares;
    step->n = n;
    s.add(std::move(step));
}

void add_slot_sum(Segment& s, Address x, Address residual, Address out, int64_t n_slot, int64_t width, Dim n) {
    auto step = std::make_unique<SlotSumStep>();
    step->args = {at<float>(x), at<float>(residual), at<float>(out), n_slot, width};
    step->n = n;
    s.add(std::move(step));
}

void add_softcap(Segment& s, Address x, Address out, float cap, int64_t width, Dim n) {
    auto step = std::make_unique<SoftCapStep>();
    step->args = {at<float>(x), at<float>(out), cap};
    step->width = width;
    step->n = n;
    s.add(std::move(step));
}

void check_index(Segment& s, std::string name, Address data, Dim limit, Dim n) {
    s.check(IndexCheck{std::move(name), at<int32_t>(data), n, limit});
}

void check_tables(Segment& s, std::vector<std::string> names, Address tables, Address rows, Address n_visible,
                  int64_t page_size, int64_t n_cells, int64_t max_seqs, Dim n, Dim n_seqs, Dim n_pages) {
    s.check(TableCheck{names.at(0), names.at(1), names.at(2), at<int32_t>(tables), at<int32_t>(rows),
                       at<int32_t>(n_visible), n, n_seqs, n_pages, page_size, n_cells,
                       std::vector<int64_t>(static_cast<size_t>(max_seqs))});
}

// Zeroed memory whose pages exist, or None.  It goes back when the last view of it does.
nb::object allocate(size_t n_bytes) {
    struct Mapping {
        void* address;
        size_t n_bytes;
    };
    void* address = nullptr;
    {
        const nb::gil_scoped_release release;
        address = map_pages(n_bytes);
    }
    if (address == nullptr) return nb::none();
    auto* mapping = new Mapping{address, n_bytes};
    const nb::capsule owner(mapping, [](void* p) noexcept {
        auto* mine = static_cast<Mapping*>(p);
        munmap(mine->address, mine->n_bytes);
        delete mine;
    });
    return nb::cast(Bytes(address, {n_bytes}, owner));
}

nb::object dequantize(const std::string& isa, ConstBytes raw, int dtype, int64_t n) {
    const Kernels& kernels = kernels_named(isa);
    auto* values = new float[static_cast<size_t>(n)];
    const nb::capsule owner(values, [](void* p) noexcept { delete[] static_cast<float*>(p); });
    kernels.dequantize(raw.data(), values, n, static_cast<DType>(dtype));
    return nb::cast(nb::ndarray<nb::numpy, float, nb::ndim<1>>(values, {static_cast<size_t>(n)}, owner));
}

std::pair<double, uint64_t> timed_read(Pool& pool, const std::string& isa, ConstBytes data) {
    const Kernels& kernels = kernels_named(isa);
    const nb::gil_scoped_release release;
    const Measured measured = measure_read(pool, kernels, data.data(), static_cast<int64_t>(data.size()));
    return {measured.seconds, measured.result};
}

using Measure = Measured (*)(Pool&, const Kernels&, int64_t);

template <Measure kMeasure>
std::pair<double, uint64_t> timed_chain(Pool& pool, const std::string& isa, int64_t n_rounds) {
    const Kernels& kernels = kernels_named(isa);
    const nb::gil_scoped_release release;
    const Measured measured = kMeasure(pool, kernels, n_rounds);
    return {measured.seconds, measured.result};
}

int64_t sample_token(Floats logits, Ints history, nb::object mask, const SamplingParams& params) {
    ConstBytes allowed;
    if (!mask.is_none()) allowed = nb::cast<ConstBytes>(mask);
    const uint8_t* bits = mask.is_none() ? nullptr : allowed.data();
    const nb::gil_scoped_release release;
    return sample(logits.data(), static_cast<int64_t>(logits.size()), history.data(),
                  static_cast<int64_t>(history.size()), bits, params);
}

// (is_finite, log-probability of the token, the top_k most likely with theirs)
std::tuple<bool, double, std::vector<std::pair<int64_t, double>>> token_logprobs(Floats logits, int64_t token,
                                                                                 int64_t top_k) {
    Logprobs result{};
    {
        const nb::gil_scoped_release release;
        result = logprobs(logits.data(), static_cast<int64_t>(logits.size()), token, top_k);
    }
    return {result.is_finite, result.chosen, std::move(result.top)};
}

SamplingParams make_params(double temperature, int64_t top_k, double top_p, double min_p, double typical_p,
                           int64_t repeat_last_n, double repeat_penalty, double presence_penalty,
                           double frequency_penalty, uint64_t seed, uint64_t position) {
    return {temperature,       top_k, top_p,   min_p, typical_p, repeat_last_n, repeat_penalty, presence_penalty,
            frequency_penalty, seed,  position};
}

}  // namespace
}  // namespace cpu

NB_MODULE(_cpu, m) {
    using namespace cpu;
    nb::set_leak_warnings(false);  // a module's global that lives until exit is no leak
    m.doc() = "CPU kernels, executor and sampler; see kernels/cpu/backend.py and sampler.py";
    m.attr("ACT_GROUP_N") = ActGroup::kSize;
    m.attr("ACT_GROUP_BYTES") = sizeof(ActGroup);
    m.attr("MAX_ROTATED") = 2 * kMaxPairs;
    m.attr("MAX_TAPS") = kMaxTaps;

    m.def("available_isas", [] {
        std::vector<std::string> names;
        for (const Kernels* kernels : available_kernels()) names.emplace_back(kernels->name);
        return names;
    });
    m.def("matmul_scratch", &matmul_scratch, "n"_a);
    m.def("order_words", &ExpertStep::order_words, "n_expert"_a, "n_slots"_a);
    m.def("attention_workspace_bytes", &attention_workspace_bytes, nb::kw_only(), "cache"_a, "n_group"_a, "max_rows"_a,
          "max_cells"_a, "has_bias"_a, "reach"_a, "n_threads"_a);
    m.def("allocate", &allocate, "n_bytes"_a);
    m.def("dequantize", &dequantize, "isa"_a, "raw"_a, "dtype"_a, "n"_a);

    nb::class_<Pool>(m, "Pool").def(nb::init<int>(), "n_threads"_a).def_prop_ro("n_threads", &Pool::n_threads);
    m.def("timed_read", &timed_read, "pool"_a, "isa"_a, "data"_a);
    m.def("timed_int8", &timed_chain<measure_int8>, "pool"_a, "isa"_a, "n_rounds"_a);
    m.def("timed_f32", &timed_chain<measure_f32>, "pool"_a, "isa"_a, "n_rounds"_a);
    nb::class_<Segment>(m, "Segment")
        .def(
            "__init__",
            [](Segment* self, std::shared_ptr<Pool> pool, const std::string& isa) {
                new (self) Segment(std::move(pool), kernels_named(isa));
            },
            "pool"_a, "isa"_a)
        .def_prop_ro("n_threads", &Segment::n_threads)
        .def("add_rows", &add_rows, nb::kw_only(), "table"_a, "ids"_a, "out"_a, "width"_a, "scale"_a, "dtype"_a, "n"_a)
        .def("add_rms_norm", &add_rms_norm, nb::kw_only(), "x"_a, "weight"_a, "residual"_a, "out"_a, "width"_a,
             "chunk"_a, "eps"_a, "n"_a)
        .def("add_matmul", &add_matmul, nb::kw_only(), "x"_a, "weight"_a, "bias"_a, "residual"_a, "out"_a, "scratch"_a,
             "acts"_a, "thread_floats"_a, "n_in"_a, "n_out"_a, "dtype"_a, "row_bytes"_a, "quantizes"_a, "n"_a)
        .def("add_rope", &add_rope, nb::kw_only(), "x"_a, "positions"_a, "out"_a, "n_head"_a, "head_dim"_a,
             "rotation"_a, "n"_a)
        .def("add_store_kv", &add_store_kv, nb::kw_only(), "k"_a, "v"_a, "positions"_a, "cells"_a, "k_state"_a,
             "v_state"_a, "cache"_a, "rotation"_a, "n"_a)
        .def("add_attention", &add_attention, nb::kw_only(), "q"_a, "k_state"_a, "v_state"_a, "tables"_a, "rows"_a,
             "n_visible"_a, "out"_a, "workspace"_a, "n_head"_a, "cache"_a, "window"_a, "chunk"_a, "scale"_a,
             "softcap"_a, "temperature"_a, "temperature_length"_a, "bias"_a, "positions"_a, "reach"_a, "max_rows"_a,
             "n"_a, "n_pages"_a)
        .def("add_gate", &add_gate, nb::kw_only(), "gate"_a, "up"_a, "out"_a, "activation"_a, "width"_a, "n"_a)
        .def("add_short_conv", &add_short_conv, nb::kw_only(), "x"_a, "weight"_a, "state"_a, "rows"_a, "sources"_a,
             "targets"_a, "out"_a, "width"_a, "n_taps"_a, "n"_a)
        .def("add_softcap", &add_softcap, nb::kw_only(), "x"_a, "out"_a, "cap"_a, "width"_a, "n"_a)
        .def("add_route", &add_route, nb::kw_only(), "logits"_a, "ids"_a, "weights"_a, "n_expert"_a, "n_used"_a,
             "gating"_a, "n"_a)
        .def("add_experts", &add_experts, nb::kw_only(), "x"_a, "weight"_a, "ids"_a, "scales"_a, "out"_a, "scratch"_a,
             "acts"_a, "order"_a, "thread_floats"_a, "n_in"_a, "n_out"_a, "n_expert"_a, "n_used"_a, "max_slots"_a,
             "dtype"_a, "row_bytes"_a, "is_shared"_a, "prepares"_a, "n"_a)
        .def("add_slot_sum", &add_slot_sum, nb::kw_only(), "x"_a, "residual"_a, "out"_a, "n_slot"_a, "width"_a, "n"_a)
        .def("check_index", &check_index, nb::kw_only(), "name"_a, "data"_a, "limit"_a, "n"_a)
        .def("check_tables", &check_tables, nb::kw_only(), "names"_a, "tables"_a, "rows"_a, "n_visible"_a,
             "page_size"_a, "n_cells"_a, "max_seqs"_a, "n"_a, "n_seqs"_a, "n_pages"_a)
        .def("run", &Segment::run, "values"_a, "is_alone"_a, nb::call_guard<nb::gil_scoped_release>());

    nb::class_<SamplingParams>(m, "SamplingParams")
        .def(
            "__init__",
            [](SamplingParams* self, double temperature, int64_t top_k, double top_p, double min_p, double typical_p,
               int64_t repeat_last_n, double repeat_penalty, double presence_penalty, double frequency_penalty,
               uint64_t seed, uint64_t position) {
                new (self)
                    SamplingParams(make_params(temperature, top_k, top_p, min_p, typical_p, repeat_last_n,
                                               repeat_penalty, presence_penalty, frequency_penalty, seed, position));
            },
            nb::kw_only(), "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "typical_p"_a, "repeat_last_n"_a,
            "repeat_penalty"_a, "presence_penalty"_a, "frequency_penalty"_a, "seed"_a, "position"_a);
    m.attr("NOT_FINITE") = kNotFinite;
    m.attr("ALL_MASKED") = kAllMasked;
    m.attr("BAD_HISTORY") = kBadHistory;
    m.def("sample", &sample_token, "logits"_a, "history"_a, "mask"_a.none(), "params"_a);
    m.def("logprobs", &token_logprobs, "logits"_a, "token"_a, "top_k"_a);
    m.def("philox", &philox, "counter"_a, "key"_a);
    bind_worker(m);
}
