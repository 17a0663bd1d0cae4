// Packed strings as GGUF keeps them, and an index from text to the string's number.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace text {

// A multiply-fold hash under a key that differs from process to process: a file cannot be made to collide.
uint64_t hash_bytes(std::string_view bytes);
uint64_t hash_word(uint64_t word);
// Of an open hash table for n things: a power of two, at most two thirds taken.
size_t n_slots_for(int64_t n);

// n strings, each 8 bytes of length and then its bytes; starts [n + 1]: of each length, and the end.  The memory is
// the caller's.
struct Strings {
    const char* data;
    const int64_t* starts;
    int64_t n;

    std::string_view operator[](int64_t i) const {
        const int64_t begin = starts[i] + 8;
        return {data + begin, static_cast<size_t>(starts[i + 1] - begin)};
    }
};

// Bytes of the UTF-8 character that begins with this byte, by it alone; 1 for what begins none.
inline size_t char_bytes(char first) {
    const auto byte = static_cast<uint8_t>(first);
    return byte < 0xC0 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

// Where the n strings from begin on end, or an empty vector if one leads outside the view (and n > 0).
std::vector<int64_t> string_ends(std::string_view view, int64_t begin, int64_t n);

// The number of a string; of equal ones the last.
class Index {
public:
    // Strings with skip[i] != 0 are not found; skip may be null.
    Index(Strings strings, const uint8_t* skip);
    int32_t find(std::string_view text) const { return find(text, hash_bytes(text)); }  // -1: not there
    int32_t find(std::string_view text, uint64_t hash) const;
    // For many lookups in a row, each a few cache misses: bring in the slot, then where its string begins, then the
    // string, some lookups ahead of `find`.
    void prefetch_slot(uint64_t hash) const { __builtin_prefetch(&slots_[hash & (slots_.size() - 1)]); }
    void prefetch_start(uint64_t hash) const;
    void prefetch_text(uint64_t hash) const;
    const Strings& strings() const { return strings_; }

private:
    int32_t likely_id(uint64_t hash) const;

    struct Slot {
        uint32_t tag;
        int32_t id;
    };
    Strings strings_;
    std::vector<Slot> slots_;  // a power of two of them, at most two thirds taken
};

}  // namespace text
