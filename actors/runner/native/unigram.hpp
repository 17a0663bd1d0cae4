// Unigram segmentation (`t5`): normalise the text by the model's own rules, then cut it where the scores of the pieces
// add up to the most.  Unchanging once built, so any number of threads may encode.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "strings.hpp"

namespace text {

// Byte strings by their prefixes.  Nodes in the order of their depth, so that the children of one lie side by side.
class Trie {
public:
    using Key = std::pair<std::string_view, int32_t>;  // a text and its number, at least 0

    static constexpr uint32_t ROOT = 0;
    static constexpr uint32_t NOWHERE = UINT32_MAX;

    // Empty texts are left out; of equal ones the last counts.  std::invalid_argument for more nodes than 32 bits
    // count.
    explicit Trie(std::vector<Key> keys);
    uint32_t step(uint32_t node, char byte) const;          // NOWHERE: no text goes on like this
    int32_t id(uint32_t node) const { return ids_[node]; }  // -1: no text ends here
    size_t longest(std::string_view text) const;            // bytes of the longest text it begins with, or 0

private:
    std::vector<uint32_t> first_;  // [n_nodes + 1] first child of each node; its last is before the next one's first
    std::vector<char> labels_;     // [n_nodes] the byte that leads to each node
    std::vector<int32_t> ids_;     // [n_nodes]
};

// Replacements of character sequences, as SentencePiece compiles them: a double array whose leaves say where in the
// texts each replacement begins.
class CharsMap {
public:
    static constexpr size_t MAX_KEY_BYTES = 256;          // a longer sequence is not looked for
    static constexpr size_t MAX_REPLACEMENT_BYTES = 256;  // bounds what a text can grow to

    // Both empty: no replacements.  std::invalid_argument for a leaf outside the units or the texts, and for a text
    // without an end or too long.
    CharsMap(std::vector<uint32_t> units, std::string texts);
    struct Match {
        size_t n_bytes;  // 0: nothing is replaced
        std::string_view replacement;
    };
    Match longest(std::string_view text) const;

private:
    void check_leaf(size_t at) const;

    std::vector<uint32_t> units_;
    std::string texts_;
};

struct UnigramRules {
    bool add_prefix;        // a space before the text
    bool collapses_spaces;  // runs become one, those at both ends go
};

class Unigram {
public:
    enum Kind : uint8_t { NOT_TEXT, PLAIN, UNUSED, USER };  // of tokens: control tokens and their like are NOT_TEXT

    // kinds, scores [n]: of each token; byte_ids [256]: tokens of single bytes, -1 where there is none.
    Unigram(Strings tokens, std::span<const uint8_t> kinds, std::span<const float> scores,
            std::span<const int32_t> byte_ids, int32_t unknown, CharsMap chars, UnigramRules rules);
    // A character that is no piece becomes its bytes' tokens; where one of them is missing, it and its like beside it
    // become one unknown token.
    std::vector<int32_t> encode(std::string_view text) const;

private:
    // What is no UTF-8 counts as U+FFFD, one a byte.
    std::string normalise(std::string_view text) const;
    struct Best {
        float score = 0;
        int32_t id = -1;
        uint32_t start = UINT32_MAX;  // where the last piece begins; UINT32_MAX: nothing ends here
    };
    CharsMap::Match next_of(std::string_view text) const;
    std::vector<Best> best_ends(std::string_view text) const;
    void append(std::vector<int32_t>& ids, int32_t id, std::string_view bytes) const;

    std::vector<uint8_t> kinds_;
    std::vector<float> scores_;
    std::array<int32_t, 256> byte_ids_;
    int32_t unknown_;
    float unknown_score_;
    float best_score_;
    CharsMap chars_;
    UnigramRules rules_;
    Trie pieces_;
    Trie marks_;  // user-defined tokens: no rule changes them
};

}  // namespace text
