#include "unigram.hpp"

#include <algorithm>
#include <cfloat>
#include <cstring>
#include <stdexcept>

namespace text {
namespace {

constexpr std::string_view SPACE = "\xE2\x96\x81";        // U+2581
constexpr std::string_view REPLACEMENT = "\xEF\xBF\xBD";  // U+FFFD
constexpr float UNKNOWN_PENALTY = 10.0F;

// Bytes of the character that the text begins with, 0 if it is no UTF-8.
size_t valid_char(std::string_view text) {
    const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<uint8_t>(text[i])); };
    if (byte(0) < 0x80) return 1;
    const size_t n = char_bytes(text[0]);
    if (n == 1 || byte(0) > 0xF4 || text.size() < n) return 0;
    uint32_t code = byte(0) & (0x7FU >> n);
    for (size_t i = 1; i < n; i++) {
        if ((byte(i) & 0xC0) != 0x80) return 0;
        code = code << 6 | (byte(i) & 0x3F);
    }
    constexpr uint32_t LEAST[5] = {0, 0, 0x80, 0x800, 0x10000};
    const bool is_surrogate = code >= 0xD800 && code < 0xE000;
    return code < LEAST[n] || code > 0x10FFFF || is_surrogate ? 0 : n;
}

std::vector<Trie::Key> keys_of(const Strings& tokens, std::span<const uint8_t> kinds, bool only_users) {
    std::vector<Trie::Key> keys;
    for (int64_t i = 0; i < tokens.n; i++) {
        const uint8_t kind = kinds[static_cast<size_t>(i)];
        if (only_users ? kind == Unigram::USER : kind != Unigram::NOT_TEXT)
            keys.emplace_back(tokens[i], static_cast<int32_t>(i));
    }
    return keys;
}

}  // namespace

Trie::Trie(std::vector<Key> keys) {
    std::stable_sort(keys.begin(), keys.end(), [](const Key& a, const Key& b) { return a.first < b.first; });
    struct Range {
        size_t begin, end, depth;  // of keys that have their first `depth` bytes in common
    };
    std::vector<Range> ranges{{0, keys.size(), 0}};  // one a node
    labels_.push_back(0);
    for (size_t node = 0; node < ranges.size(); node++) {
        auto [at, end, depth] = ranges[node];
        int32_t id = -1;
        for (; at < end && keys[at].first.size() == depth; at++) id = keys[at].second;
        ids_.push_back(depth == 0 ? -1 : id);
        first_.push_back(static_cast<uint32_t>(ranges.size()));
        while (at < end) {
            const char label = keys[at].first[depth];
            size_t next = at + 1;
            while (next < end && keys[next].first[depth] == label) next++;
            if (ranges.size() >= NOWHERE) throw std::invalid_argument("more text than a trie can hold");
            ranges.push_back({at, next, depth + 1});
            labels_.push_back(label);
            at = next;
        }
    }
    first_.push_back(static_cast<uint32_t>(ranges.size()));
}

uint32_t Trie::step(uint32_t node, char byte) const {
    const uint32_t first = first_[node];
    const size_t n = first_[node + 1] - first;
    if (n == 0) return NOWHERE;
    const char* labels = labels_.data() + first;
    if (n == 1) return *labels == byte ? first : NOWHERE;
    const void* found = std::memchr(labels, static_cast<uint8_t>(byte), n);
    return found == nullptr ? NOWHERE : first + static_cast<uint32_t>(static_cast<const char*>(found) - labels);
}

size_t Trie::longest(std::string_view text) const {
    size_t found = 0;
    uint32_t node = ROOT;
    for (size_t at = 0; at < text.size(); at++) {
        node = step(node, text[at]);
        if (node == NOWHERE) break;
        if (ids_[node] >= 0) found = at + 1;
    }
    return found;
}

// A unit of the double array: bits 0-7 the byte that leads to it, bit 8 whether a leaf follows, bits 10-30 how far
// its children are (times 256 with bit 9); of a leaf, marked by bit 31, all below that are its value.
namespace {
constexpr uint32_t LEAF = 1U << 31;
size_t offset_of(uint32_t unit) { return static_cast<size_t>((unit & ~LEAF) >> 10) << ((unit & 1U << 9) != 0 ? 8 : 0); }
bool leads_to_leaf(uint32_t unit) { return (unit & (LEAF | 1U << 8)) == 1U << 8; }
}  // namespace

CharsMap::CharsMap(std::vector<uint32_t> units, std::string texts)
    : units_(std::move(units)), texts_(std::move(texts)) {
    if (units_.empty()) return;
    if (texts_.empty() || texts_.back() != '\0') throw std::invalid_argument("the last replacement has no end");
    size_t begin = 0;
    for (size_t at = 0; at < texts_.size(); at++) {
        if (texts_[at] != '\0') continue;
        if (at - begin > MAX_REPLACEMENT_BYTES) throw std::invalid_argument("a replacement is too long");
        begin = at + 1;
    }
    for (size_t at = 0; at < units_.size(); at++) {
        if (leads_to_leaf(units_[at])) check_leaf(at ^ offset_of(units_[at]));
    }
}

void CharsMap::check_leaf(size_t at) const {
    if (at >= units_.size() || (units_[at] & LEAF) == 0) throw std::invalid_argument("a unit leads to no leaf");
    if ((units_[at] & ~LEAF) >= texts_.size()) throw std::invalid_argument("a leaf points behind the replacements");
}

CharsMap::Match CharsMap::longest(std::string_view text) const {
    if (units_.empty()) return {0, {}};
    size_t at = offset_of(units_[0]), n_bytes = 0, leaf = 0;
    const size_t end = std::min(text.size(), MAX_KEY_BYTES);
    for (size_t i = 0; i < end; i++) {
        const auto byte = static_cast<uint8_t>(text[i]);
        at ^= byte;
        if (at >= units_.size()) break;
        const uint32_t unit = units_[at];
        if ((unit & (LEAF | 0xFF)) != byte) break;
        at ^= offset_of(unit);
        if (leads_to_leaf(unit)) n_bytes = i + 1, leaf = at;
    }
    if (n_bytes == 0) return {0, {}};
    return {n_bytes, texts_.data() + (units_[leaf] & ~LEAF)};
}

Unigram::Unigram(Strings tokens, std::span<const uint8_t> kinds, std::span<const float> scores,
                 std::span<const int32_t> byte_ids, int32_t unknown, CharsMap chars, UnigramRules rules)
    : kinds_(kinds.begin(), kinds.end()),
      scores_(scores.begin(), scores.end()),
      unknown_(unknown),
      chars_(std::move(chars)),
      rules_(rules),
      pieces_(keys_of(tokens, kinds, false)),
      marks_(keys_of(tokens, kinds, true)) {
    std::copy_n(byte_ids.begin(), byte_ids_.size(), byte_ids_.begin());
    float least = FLT_MAX;
    best_score_ = FLT_MIN;  // of log-probabilities none is greater, so that marks cost about nothing
    for (size_t id = 0; id < kinds_.size(); id++) {
        if (kinds_[id] != PLAIN) continue;
        least = std::min(least, scores_[id]);
        best_score_ = std::max(best_score_, scores_[id]);
    }
    unknown_score_ = (least == FLT_MAX ? 0.0F : least) - UNKNOWN_PENALTY;
}

CharsMap::Match Unigram::next_of(std::string_view text) const {
    if (const size_t n = marks_.longest(text); n > 0) return {n, text.substr(0, n)};
    if (const CharsMap::Match match = chars_.longest(text); match.n_bytes > 0) return match;
    if (const size_t n = valid_char(text); n > 0) return {n, text.substr(0, n)};
    return {1, REPLACEMENT};
}

std::string Unigram::normalise(std::string_view text) const {
    std::string out;
    CharsMap::Match next{0, {}};
    while (!text.empty()) {
        next = next_of(text);
        if (!rules_.collapses_spaces || next.replacement != " ") break;
        text.remove_prefix(next.n_bytes);
    }
    if (text.empty()) return out;
    out.reserve(text.size() + text.size() / 2);
    if (rules_.add_prefix) out += SPACE;
    for (bool after_space = rules_.collapses_spaces; !text.empty(); text.remove_prefix(next.n_bytes)) {
        next = next_of(text);
        std::string_view part = next.replacement;
        while (after_space && part.starts_with(' ')) part.remove_prefix(1);
        for (const char byte : part) {
            if (byte == ' ')
                out += SPACE;
            else
                out += byte;
        }
        if (!part.empty()) after_space = rules_.collapses_spaces && part.ends_with(' ');
    }
    while (rules_.collapses_spaces && out.ends_with(SPACE)) out.resize(out.size() - SPACE.size());
    return out;
}

std::vector<Unigram::Best> Unigram::best_ends(std::string_view text) const {
    if (text.size() >= UINT32_MAX) throw std::invalid_argument("the text is too long");
    std::vector<Best> ends(text.size() + 1);
    for (size_t start = 0; start < text.size();) {
        const float before = ends[start].score;
        const auto offer = [&](size_t end, double score, int32_t id) {
            Best& best = ends[end];
            if (best.start != UINT32_MAX && !(score > static_cast<double>(best.score))) return;
            best = {static_cast<float>(score), id, static_cast<uint32_t>(start)};
        };
        const size_t char_end = std::min(start + char_bytes(text[start]), text.size());
        bool is_piece = false;  // the character alone
        uint32_t node = Trie::ROOT;
        for (size_t at = start; at < text.size();) {
            node = pieces_.step(node, text[at++]);
            if (node == Trie::NOWHERE) break;
            const int32_t id = pieces_.id(node);
            if (id < 0 || kinds_[static_cast<size_t>(id)] == UNUSED) continue;
            // sums in doubles, what is kept in floats: where two ways are as good, SentencePiece's rounding decides
            const double score = kinds_[static_cast<size_t>(id)] == USER
                                     ? static_cast<double>(static_cast<float>(at - start) * best_score_) - 0.1
                                     : static_cast<double>(scores_[static_cast<size_t>(id)]);
            offer(at, score + static_cast<double>(before), id);
            is_piece = is_piece || at == char_end;
        }
        if (!is_piece) offer(char_end, static_cast<double>(unknown_score_ + before), unknown_);
        start = char_end;
    }
    return ends;
}

void Unigram::append(std::vector<int32_t>& ids, int32_t id, std::string_view bytes) const {
    const auto byte_id = [this](char byte) { return byte_ids_[static_cast<uint8_t>(byte)]; };
    if (id != unknown_) {
        ids.push_back(id);
    } else if (std::all_of(bytes.begin(), bytes.end(), [&](char byte) { return byte_id(byte) >= 0; })) {
        for (const char byte : bytes) ids.push_back(byte_id(byte));
    } else if (ids.empty() || ids.back() != unknown_) {
        ids.push_back(unknown_);
    }
}

std::vector<int32_t> Unigram::encode(std::string_view raw) const {
    const std::string text = normalise(raw);
    const std::vector<Best> ends = best_ends(text);
    std::vector<uint32_t> cuts;
    for (size_t end = text.size(); end > 0; end = ends[end].start) cuts.push_back(static_cast<uint32_t>(end));
    std::vector<int32_t> ids;
    ids.reserve(cuts.size());
    for (auto cut = cuts.rbegin(); cut != cuts.rend(); ++cut) {
        const Best& best = ends[*cut];
        append(ids, best.id, std::string_view(text).substr(best.start, *cut - best.start));
    }
    return ids;
}

}  // namespace text
