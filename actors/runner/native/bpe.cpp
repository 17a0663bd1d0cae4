#include "bpe.hpp"

#include <algorithm>
#include <stdexcept>

namespace text {
namespace {

constexpr uint64_t kNoPair = ~uint64_t{0};

struct Symbol {
    int32_t id;  // below 0: taken up by the symbol before it
    int32_t prev, next;
    int32_t begin, n_bytes;  // n_bytes 0: joins nothing
};

struct Candidate {
    int32_t rank, left, id;
    int32_t n_bytes;  // of both; another number later means that one of them has changed
};

// So that the heap's front is the best rank, of equals the leftmost.
bool worse(const Candidate& a, const Candidate& b) { return a.rank != b.rank ? a.rank > b.rank : a.left > b.left; }

// The symbols of one word and the joins that are possible among them; reused from word to word.
class Word {
public:
    void clear() {
        symbols_.clear();
        heap_.clear();
    }

    void push(int32_t id, int32_t begin, int32_t n_bytes) {
        const int32_t at = static_cast<int32_t>(symbols_.size());
        symbols_.push_back({id, at - 1, at + 1, begin, n_bytes});
    }

    // Joins until nothing joins any more; joins(left, right) -> Join.
    template <class Joins>
    void merge(const Joins& joins) {
        if (symbols_.size() < 2) return;
        symbols_.back().next = -1;
        for (size_t at = 0; at + 1 < symbols_.size(); at++) consider(joins, static_cast<int32_t>(at));
        while (!heap_.empty()) {
            std::pop_heap(heap_.begin(), heap_.end(), worse);
            const Candidate best = heap_.back();
            heap_.pop_back();
            Symbol& left = symbols_[static_cast<size_t>(best.left)];
            if (left.id < 0 || left.next < 0) continue;
            Symbol& right = symbols_[static_cast<size_t>(left.next)];
            if (left.n_bytes + right.n_bytes != best.n_bytes) continue;
            left.id = best.id;
            left.n_bytes = best.n_bytes;
            left.next = right.next;
            right.id = -1;
            if (left.next >= 0) symbols_[static_cast<size_t>(left.next)].prev = best.left;
            if (left.prev >= 0) consider(joins, left.prev);
            if (left.next >= 0) consider(joins, best.left);
        }
    }

    void append_to(std::vector<int32_t>& ids) const {
        for (const Symbol& symbol : symbols_) {
            if (symbol.id >= 0) ids.push_back(symbol.id);
        }
    }

private:
    template <class Joins>
    void consider(const Joins& joins, int32_t at) {
        const Symbol& left = symbols_[static_cast<size_t>(at)];
        const Symbol& right = symbols_[static_cast<size_t>(left.next)];
        if (left.n_bytes == 0 || right.n_bytes == 0) return;
        const Join to = joins(left, right);
        if (to.rank < 0) return;
        heap_.push_back({to.rank, at, to.id, left.n_bytes + right.n_bytes});
        std::push_heap(heap_.begin(), heap_.end(), worse);
    }

    std::vector<Symbol> symbols_;
    std::vector<Candidate> heap_;
};

uint64_t pair_of(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

// A merge looked up: its two parts and what they join to, -1 for what is no token.
struct Parts {
    int32_t left, right, joined;

    bool is_whole() const { return left >= 0 && right >= 0 && joined >= 0; }
};

// Looks merges up in blocks, so that the cache misses of many overlap: 840 000 lookups take 25 ms instead of 60.
class MergeReader {
public:
    static constexpr int64_t kBlock = 64;

    MergeReader(const Index& index, Strings merges) : index_(index), merges_(merges) {}

    // The merges [begin, begin + kBlock) that there are.
    std::span<const Parts> read(int64_t begin) {
        const size_t n = static_cast<size_t>(std::min(kBlock, merges_.n - begin));
        for (size_t i = 0; i < n; i++) {
            split(merges_[begin + static_cast<int64_t>(i)], lookups_[i]);
            for (const uint64_t hash : lookups_[i].hashes) index_.prefetch_slot(hash);
        }
        for (size_t i = 0; i < n; i++) {
            for (const uint64_t hash : lookups_[i].hashes) index_.prefetch_start(hash);
        }
        for (size_t i = 0; i < n; i++) {
            for (const uint64_t hash : lookups_[i].hashes) index_.prefetch_text(hash);
        }
        for (size_t i = 0; i < n; i++) parts_[i] = find(lookups_[i]);
        return {parts_.data(), n};
    }

private:
    struct Lookup {
        bool has_space;
        std::string_view left, right;
        std::string joined;
        std::array<uint64_t, 3> hashes;
    };

    static void split(std::string_view merge, Lookup& to) {
        const size_t space = merge.find(' ', 1);  // from 1: a token may begin with a space
        to.has_space = space != std::string_view::npos;
        to.left = merge.substr(0, to.has_space ? space : 0);
        to.right = to.has_space ? merge.substr(space + 1) : std::string_view{};
        to.joined.assign(to.left).append(to.right);
        to.hashes = {hash_bytes(to.left), hash_bytes(to.right), hash_bytes(to.joined)};
    }

    Parts find(const Lookup& from) const {
        if (!from.has_space) return {-1, -1, -1};
        const auto& [left, right, joined] = from.hashes;
        return {index_.find(from.left, left), index_.find(from.right, right), index_.find(from.joined, joined)};
    }

    const Index& index_;
    Strings merges_;
    std::array<Lookup, kBlock> lookups_;
    std::array<Parts, kBlock> parts_;
};

}  // namespace

int64_t first_bad_merge(const Index& index, Strings merges) {
    MergeReader reader(index, merges);
    for (int64_t begin = 0; begin < merges.n; begin += MergeReader::kBlock) {
        int64_t at = begin;
        for (const Parts& parts : reader.read(begin)) {
            if (!parts.is_whole()) return at;
            at++;
        }
    }
    return -1;
}

RankedBpe::RankedBpe(const Index& index, const std::array<std::string, 256>& letters, Strings merges, bool whole_words)
    : index_(index), letters_(letters), whole_words_(whole_words) {
    for (size_t byte = 0; byte < 256; byte++) byte_ids_[byte] = index.find(letters[byte]);
    slots_.assign(n_slots_for(merges.n), Slot{kNoPair, {-1, -1}});
    MergeReader reader(index, merges);
    for (int64_t begin = 0; begin < merges.n; begin += MergeReader::kBlock) {
        const std::span<const Parts> block = reader.read(begin);
        for (const Parts& parts : block) __builtin_prefetch(&slots_[slot_of(pair_of(parts.left, parts.right))], 1);
        int64_t rank = begin;
        for (const Parts& parts : block) {
            if (!parts.is_whole()) throw std::invalid_argument("merge " + std::to_string(rank));
            insert(pair_of(parts.left, parts.right), {static_cast<int32_t>(rank++), parts.joined});
        }
    }
}

size_t RankedBpe::slot_of(uint64_t pair) const { return hash_word(pair) & (slots_.size() - 1); }

void RankedBpe::insert(uint64_t pair, Join to) {
    const size_t mask = slots_.size() - 1;
    size_t at = slot_of(pair);
    while (slots_[at].pair != kNoPair && slots_[at].pair != pair) at = (at + 1) & mask;
    slots_[at] = {pair, to};
}

Join RankedBpe::join(int32_t left, int32_t right) const {
    const uint64_t pair = pair_of(left, right);
    const size_t mask = slots_.size() - 1;
    for (size_t at = slot_of(pair); slots_[at].pair != kNoPair; at = (at + 1) & mask) {
        if (slots_[at].pair == pair) return slots_[at].to;
    }
    return {-1, -1};
}

std::vector<int32_t> RankedBpe::encode(std::string_view text, std::span<const int32_t> ends) const {
    std::vector<int32_t> ids;
    std::string written;
    Word word;
    size_t at = 0;
    int32_t n_chars = 0;
    for (const int32_t end : ends) {
        const size_t begin = at;
        for (; n_chars < end && at < text.size(); n_chars++) at += char_bytes(text[at]);
        const std::string_view bytes = text.substr(begin, at - begin);
        if (whole_words_) {
            written.clear();
            for (const char byte : bytes) written += letters_[static_cast<uint8_t>(byte)];
            if (const int32_t id = index_.find(written); id >= 0) {
                ids.push_back(id);
                continue;
            }
        }
        word.clear();
        for (const char byte : bytes) {
            if (const int32_t id = byte_ids_[static_cast<uint8_t>(byte)]; id >= 0) word.push(id, 0, 1);
        }
        word.merge([this](const Symbol& left, const Symbol& right) { return join(left.id, right.id); });
        word.append_to(ids);
    }
    return ids;
}

ScoredBpe::ScoredBpe(const Index& index, std::span<const int32_t> ranks, std::span<const int32_t> byte_ids,
                     int32_t unknown)
    : index_(index), ranks_(ranks.begin(), ranks.end()), unknown_(unknown), longest_(0) {
    std::copy_n(byte_ids.begin(), byte_ids_.size(), byte_ids_.begin());
    for (size_t id = 0; id < ranks_.size(); id++) {
        if (ranks_[id] >= 0) longest_ = std::max(longest_, index.strings()[static_cast<int64_t>(id)].size());
    }
}

Join ScoredBpe::join(std::string_view text) const {
    if (text.size() > longest_) return {-1, -1};
    const int32_t id = index_.find(text);
    return id < 0 ? Join{-1, -1} : Join{ranks_[static_cast<size_t>(id)], id};
}

std::vector<int32_t> ScoredBpe::encode(std::string_view text) const {
    Word word;
    word.clear();
    for (size_t at = 0; at < text.size();) {
        const size_t n_bytes = std::min(char_bytes(text[at]), text.size() - at);
        const std::string_view bytes = text.substr(at, n_bytes);
        const auto byte_id = [this](char byte) { return byte_ids_[static_cast<uint8_t>(byte)]; };
        if (const int32_t id = index_.find(bytes); id >= 0) {
            const bool joins = ranks_[static_cast<size_t>(id)] >= 0;
            word.push(id, static_cast<int32_t>(at), joins ? static_cast<int32_t>(n_bytes) : 0);
        } else if (std::all_of(bytes.begin(), bytes.end(), [&](char byte) { return byte_id(byte) >= 0; })) {
            for (const char byte : bytes) word.push(byte_id(byte), 0, 0);
        } else if (unknown_ >= 0) {
            word.push(unknown_, 0, 0);
        }
        at += n_bytes;
    }
    word.merge([&](const Symbol& left, const Symbol& right) {
        return join(text.substr(static_cast<size_t>(left.begin), static_cast<size_t>(left.n_bytes + right.n_bytes)));
    });
    std::vector<int32_t> ids;
    word.append_to(ids);
    return ids;
}

}  // namespace text
