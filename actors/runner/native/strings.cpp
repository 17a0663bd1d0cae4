#include "strings.hpp"

#include <bit>
#include <cstring>
#include <random>

namespace text {
namespace {

struct Keys {
    uint64_t a, b;
};

const Keys& keys() {
    static const Keys drawn = [] {
        std::random_device device;
        const auto word = [&] { return static_cast<uint64_t>(device()) << 32 | device(); };
        return Keys{word() | 1, word() | 1};
    }();
    return drawn;
}

uint64_t fold(uint64_t x, uint64_t y) {
    __extension__ using Wide = unsigned __int128;
    const Wide product = static_cast<Wide>(x) * y;
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

}  // namespace

size_t n_slots_for(int64_t n) { return std::bit_ceil(static_cast<size_t>(n) + static_cast<size_t>(n) / 2 + 1); }

uint64_t hash_word(uint64_t word) { return fold(fold(word ^ keys().a, 0x9E3779B97F4A7C15u) ^ keys().b, keys().a); }

uint64_t hash_bytes(std::string_view bytes) {
    uint64_t hash = keys().b ^ bytes.size();
    size_t at = 0;
    for (; at + 8 <= bytes.size(); at += 8) {
        uint64_t word;
        std::memcpy(&word, bytes.data() + at, 8);
        hash = fold(hash ^ word, keys().a);
    }
    uint64_t rest = 0;
    if (at < bytes.size()) std::memcpy(&rest, bytes.data() + at, bytes.size() - at);
    return hash_word(hash ^ rest);
}

std::vector<int64_t> string_ends(std::string_view view, int64_t begin, int64_t n) {
    std::vector<int64_t> ends;
    const int64_t n_bytes = static_cast<int64_t>(view.size());
    for (int64_t i = 0, at = begin; i < n; i++) {
        uint64_t length;
        if (at < 0 || n_bytes - at < 8) return {};
        std::memcpy(&length, view.data() + at, 8);
        if (length > static_cast<uint64_t>(n_bytes - at - 8)) return {};
        at += 8 + static_cast<int64_t>(length);
        ends.push_back(at);
    }
    return ends;
}

Index::Index(Strings strings, const uint8_t* skip) : strings_(strings) {
    slots_.assign(n_slots_for(strings.n), Slot{0, -1});
    const size_t mask = slots_.size() - 1;
    for (int64_t i = 0; i < strings.n; i++) {
        if (skip != nullptr && skip[i] != 0) continue;
        const uint64_t hash = hash_bytes(strings[i]);
        const uint32_t tag = static_cast<uint32_t>(hash >> 32);
        size_t at = hash & mask;
        while (slots_[at].id >= 0 && !(slots_[at].tag == tag && strings[slots_[at].id] == strings[i]))
            at = (at + 1) & mask;
        slots_[at] = {tag, static_cast<int32_t>(i)};
    }
}

int32_t Index::find(std::string_view text, uint64_t hash) const {
    const uint32_t tag = static_cast<uint32_t>(hash >> 32);
    const size_t mask = slots_.size() - 1;
    for (size_t at = hash & mask; slots_[at].id >= 0; at = (at + 1) & mask) {
        if (slots_[at].tag == tag && strings_[slots_[at].id] == text) return slots_[at].id;
    }
    return -1;
}

int32_t Index::likely_id(uint64_t hash) const {
    const uint32_t tag = static_cast<uint32_t>(hash >> 32);
    const size_t mask = slots_.size() - 1;
    for (size_t at = hash & mask; slots_[at].id >= 0; at = (at + 1) & mask) {
        if (slots_[at].tag == tag) return slots_[at].id;
    }
    return -1;
}

void Index::prefetch_start(uint64_t hash) const {
    if (const int32_t id = likely_id(hash); id >= 0) __builtin_prefetch(strings_.starts + id);
}

void Index::prefetch_text(uint64_t hash) const {
    if (const int32_t id = likely_id(hash); id >= 0) __builtin_prefetch(strings_.data + strings_.starts[id]);
}

}  // namespace text
