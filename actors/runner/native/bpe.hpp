// Byte-pair encoding over a file's own vocabulary: the two kinds that GGUF files have.  Both are unchanging once built,
// so any number of threads may encode.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "strings.hpp"

namespace text {

struct Join {
    int32_t rank;  // lower joins first, of equals the leftmost; -1: these two do not join
    int32_t id;
};

// The first merge that is not "left right" with both parts and their join in the index, or -1.
int64_t first_bad_merge(const Index& index, Strings merges);

// Ranked merges inside words whose bytes are written as letters (`gpt2`).
class RankedBpe {
public:
    // letters: how the vocabulary writes each byte.  Throws std::invalid_argument for a bad merge.
    RankedBpe(const Index& index, const std::array<std::string, 256>& letters, Strings merges, bool whole_words);
    // ends: of each word, in characters of the UTF-8 text.  A byte whose letter is no token is left out.
    std::vector<int32_t> encode(std::string_view text, std::span<const int32_t> ends) const;
    Join join(int32_t left, int32_t right) const;

private:
    struct Slot {
        uint64_t pair;
        Join to;
    };
    size_t slot_of(uint64_t pair) const;
    void insert(uint64_t pair, Join to);

    const Index& index_;
    std::array<std::string, 256> letters_;
    std::array<int32_t, 256> byte_ids_;
    std::vector<Slot> slots_;
    bool whole_words_;  // a word that is a token is that token, whatever the merges would make of it
};

// Neighbours join when what they join to is a token, the best-scored token first (`llama`).
class ScoredBpe {
public:
    // ranks [n]: of each token that text can join to, 0 the best score; -1 for the others.  byte_ids [256]: tokens of
    // single bytes, -1 where there is none.  unknown: -1 when there is none.
    ScoredBpe(const Index& index, std::span<const int32_t> ranks, std::span<const int32_t> byte_ids, int32_t unknown);
    // A character that is no token becomes its bytes' tokens, or the unknown token where one of them is missing.
    std::vector<int32_t> encode(std::string_view text) const;
    Join join(std::string_view text) const;

private:
    const Index& index_;
    std::vector<int32_t> ranks_;
    std::array<int32_t, 256> byte_ids_;
    int32_t unknown_;
    size_t longest_;  // bytes of the longest token that text can join to
};

}  // namespace text
