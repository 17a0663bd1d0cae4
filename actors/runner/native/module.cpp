// The Python face of the text side: where a file's strings lie, and encoding with its vocabulary.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <memory>

#include "bpe.hpp"
#include "strings.hpp"
#include "unigram.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace text {
namespace {

using View = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Starts = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Flags = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::span<const int32_t> span_of(const Ints& ints) { return {ints.data(), ints.size()}; }

std::string_view view_of(const nb::bytes& bytes) { return {bytes.c_str(), bytes.size()}; }

Strings strings_of(const nb::bytes& data, const Starts& starts) {
    const int64_t n = static_cast<int64_t>(starts.size()) - 1;
    if (n < 0 || starts.data()[n] > static_cast<int64_t>(data.size())) throw nb::value_error("starts beyond the data");
    return {data.c_str(), starts.data(), n};
}

// An index and the Python objects whose memory it points into.
struct OwnedIndex {
    OwnedIndex(nb::bytes data, Starts starts, nb::object skip)
        : data_(std::move(data)), starts_(std::move(starts)), index_(make(skip)) {}

    Index make(const nb::object& skip) const {
        const Strings strings = strings_of(data_, starts_);
        Flags flags;
        if (!skip.is_none()) flags = nb::cast<Flags>(skip);
        if (!skip.is_none() && static_cast<int64_t>(flags.size()) != strings.n)
            throw nb::value_error("skip has another length");
        const uint8_t* skipped = skip.is_none() ? nullptr : flags.data();
        const nb::gil_scoped_release release;
        return Index(strings, skipped);
    }

    nb::bytes data_;
    Starts starts_;
    Index index_;
};

nb::object string_ends_of(View view, int64_t begin, int64_t n) {
    std::vector<int64_t>* ends = nullptr;
    {
        const nb::gil_scoped_release release;
        const std::string_view bytes{reinterpret_cast<const char*>(view.data()), view.size()};
        ends = new std::vector<int64_t>(string_ends(bytes, begin, n));
    }
    const nb::capsule owner(ends, [](void* p) noexcept { delete static_cast<std::vector<int64_t>*>(p); });
    if (static_cast<int64_t>(ends->size()) != n) return nb::none();
    return nb::cast(nb::ndarray<nb::numpy, int64_t, nb::ndim<1>>(ends->data(), {ends->size()}, owner));
}

int64_t first_bad_merge_of(const OwnedIndex& index, nb::bytes data, Starts starts) {
    const Strings merges = strings_of(data, starts);
    const nb::gil_scoped_release release;
    return first_bad_merge(index.index_, merges);
}

CharsMap chars_map_of(const nb::bytes& units, const nb::bytes& texts) {
    std::vector<uint32_t> words(units.size() / sizeof(uint32_t));
    if (!words.empty()) std::memcpy(words.data(), units.c_str(), words.size() * sizeof(uint32_t));
    return CharsMap(std::move(words), std::string(view_of(texts)));
}

void make_unigram(Unigram* self, nb::bytes data, Starts starts, Flags kinds, Floats scores, Ints byte_ids,
                  int32_t unknown, nb::bytes units, nb::bytes texts, bool add_prefix, bool collapses_spaces) {
    const Strings tokens = strings_of(data, starts);
    const auto n = static_cast<size_t>(tokens.n);
    if (kinds.size() != n || scores.size() != n || byte_ids.size() != 256)
        throw nb::value_error("kinds, scores or byte_ids have another length");
    CharsMap chars = chars_map_of(units, texts);
    const nb::gil_scoped_release release;
    new (self) Unigram(tokens, {kinds.data(), n}, {scores.data(), n}, span_of(byte_ids), unknown, std::move(chars),
                       {add_prefix, collapses_spaces});
}

}  // namespace
}  // namespace text

NB_MODULE(_native, m) {
    using namespace text;
    nb::set_leak_warnings(false);  // a module's global that lives until exit is no leak
    m.def("string_ends", &string_ends_of, "view"_a, "begin"_a, "n"_a);
    m.def("first_bad_merge", &first_bad_merge_of, "index"_a, "data"_a, "starts"_a);
    nb::class_<OwnedIndex>(m, "Index")
        .def(nb::init<nb::bytes, Starts, nb::object>(), "data"_a, "starts"_a, "skip"_a = nb::none())
        .def("find", [](const OwnedIndex& self, nb::bytes text) { return self.index_.find(view_of(text)); }, "text"_a);
    nb::class_<RankedBpe>(m, "RankedBpe")
        .def(
            "__init__",
            [](RankedBpe* self, const OwnedIndex& index, const std::array<std::string, 256>& letters, nb::bytes data,
               Starts starts, bool whole_words) {
                const Strings merges = strings_of(data, starts);
                const nb::gil_scoped_release release;
                new (self) RankedBpe(index.index_, letters, merges, whole_words);
            },
            "index"_a, "letters"_a, "data"_a, "starts"_a, "whole_words"_a, nb::keep_alive<1, 2>())
        .def(
            "encode",
            [](const RankedBpe& self, nb::bytes text, Ints ends) {
                const std::string_view view = view_of(text);
                const nb::gil_scoped_release release;
                return self.encode(view, span_of(ends));
            },
            "text"_a, "ends"_a);
    nb::class_<ScoredBpe>(m, "ScoredBpe")
        .def(
            "__init__",
            [](ScoredBpe* self, const OwnedIndex& index, Ints ranks, Ints byte_ids, int32_t unknown) {
                if (static_cast<int64_t>(ranks.size()) != index.index_.strings().n || byte_ids.size() != 256)
                    throw nb::value_error("ranks or byte_ids have another length");
                new (self) ScoredBpe(index.index_, span_of(ranks), span_of(byte_ids), unknown);
            },
            "index"_a, "ranks"_a, "byte_ids"_a, "unknown"_a, nb::keep_alive<1, 2>())
        .def(
            "encode",
            [](const ScoredBpe& self, nb::bytes text) {
                const std::string_view view = view_of(text);
                const nb::gil_scoped_release release;
                return self.encode(view);
            },
            "text"_a);
    nb::class_<Unigram>(m, "Unigram")
        .def("__init__", &make_unigram, "data"_a, "starts"_a, "kinds"_a, "scores"_a, "byte_ids"_a, "unknown"_a,
             "units"_a, "texts"_a, "add_prefix"_a, "collapses_spaces"_a)
        .def(
            "encode",
            [](const Unigram& self, nb::bytes text) {
                const std::string_view view = view_of(text);
                const nb::gil_scoped_release release;
                return self.encode(view);
            },
            "text"_a);
}
