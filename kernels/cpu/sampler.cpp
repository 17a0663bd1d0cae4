#include "sampler.hpp"

#include "../cuda/shares.cuh"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <stdexcept>

namespace cpu {
namespace {

constexpr double kLowest = -std::numeric_limits<double>::infinity();
constexpr double kMinTemperature = 1e-7;

struct Candidate {
    int64_t id;
    double logit;
    uint64_t weight;  // exp((logit - highest) / temperature), as `weight_of` has it
};

// More likely first; of equals the lower id.
bool before(const Candidate& a, const Candidate& b) { return a.logit != b.logit ? a.logit > b.logit : a.id < b.id; }

bool by_id(const Candidate& a, const Candidate& b) { return a.id < b.id; }

constexpr int64_t kBlock = 128;       // logits under one maximum
constexpr int64_t kFewPerVocab = 16;  // over n_vocab / 16 candidates, going through all logits is not slower

// The highest logit of each block of a row, and whether the row can be sampled from at all.
struct Scan {
    std::vector<float> maxima;
    bool is_finite;
    float highest;
};

using Lanes = float __attribute__((vector_size(16)));
using Marks = int32_t __attribute__((vector_size(16)));
constexpr int64_t kLanes = 4, kChains = 4;  // of four lanes each: one chain would wait for its own last compare

float block_max(const float* x, int64_t n, bool& bad) {
    constexpr float inf = std::numeric_limits<float>::infinity();
    const Lanes limit = {inf, inf, inf, inf};
    Lanes highest[kChains] = {-limit, -limit, -limit, -limit};
    Marks fine[kChains] = {~Marks{}, ~Marks{}, ~Marks{}, ~Marks{}};
    int64_t i = 0;
    for (; i + kLanes * kChains <= n; i += kLanes * kChains) {
        for (int64_t chain = 0; chain < kChains; chain++) {
            Lanes lanes;
            std::memcpy(&lanes, x + i + chain * kLanes, sizeof lanes);
            highest[chain] = lanes > highest[chain] ? lanes : highest[chain];
            fine[chain] &= lanes < limit;
        }
    }
    float best = -inf;
    for (; i < n; i++) {
        best = x[i] > best ? x[i] : best;
        bad |= !(x[i] < inf);
    }
    for (int64_t chain = 0; chain < kChains; chain++) {
        for (int64_t lane = 0; lane < kLanes; lane++) {
            best = std::max(best, highest[chain][lane]);
            bad |= fine[chain][lane] == 0;
        }
    }
    return best;
}

Scan scan(const float* logits, int64_t n_vocab) {
    Scan result{{}, true, -std::numeric_limits<float>::infinity()};
    result.maxima.reserve(static_cast<size_t>((n_vocab + kBlock - 1) / kBlock));
    bool bad = false;
    for (int64_t begin = 0; begin < n_vocab; begin += kBlock)
        result.maxima.push_back(block_max(logits + begin, std::min(kBlock, n_vocab - begin), bad));
    for (const float highest : result.maxima) result.highest = std::max(result.highest, highest);
    result.is_finite = !bad && !std::isinf(result.highest);
    return result;
}

// The k most likely of a scanned row, k <= n_vocab, in no order: only blocks are read whose highest logit is among the
// k highest of all blocks, for k logits are no lower than that.
std::vector<Candidate> most_likely(const float* logits, int64_t n_vocab, const Scan& scanned, size_t k) {
    float least = -std::numeric_limits<float>::infinity();
    if (k <= scanned.maxima.size()) {
        std::vector<float> order = scanned.maxima;
        const auto at = order.begin() + static_cast<std::ptrdiff_t>(k) - 1;
        std::nth_element(order.begin(), at, order.end(), std::greater<>());
        least = *at;
    }
    std::vector<Candidate> found;
    for (size_t block = 0; block < scanned.maxima.size(); block++) {
        if (scanned.maxima[block] < least) continue;
        const int64_t begin = static_cast<int64_t>(block) * kBlock;
        for (int64_t id = begin; id < std::min(begin + kBlock, n_vocab); id++) {
            if (logits[id] >= least) found.push_back({id, static_cast<double>(logits[id]), 0});
        }
    }
    if (found.size() > k) {
        std::nth_element(found.begin(), found.begin() + static_cast<std::ptrdiff_t>(k), found.end(), before);
        found.resize(k);
    }
    return found;
}

// The k most likely, in no order.  The heap's front is the least likely of those held.
std::vector<Candidate> most_likely(const std::vector<double>& logits, size_t k) {
    std::vector<Candidate> held;
    held.reserve(k);
    for (size_t id = 0; id < logits.size(); id++) {
        if (held.size() == k && !(logits[id] > held.front().logit)) continue;
        if (held.size() == k) {
            std::pop_heap(held.begin(), held.end(), before);
            held.pop_back();
        }
        held.push_back({static_cast<int64_t>(id), logits[id], 0});
        std::push_heap(held.begin(), held.end(), before);
    }
    return held;
}

uint64_t total_weight(const std::vector<Candidate>& candidates) {
    uint64_t total = 0;
    for (const Candidate& c : candidates) total += c.weight;
    return total;
}

double penalized(double logit, int64_t count, const SamplingParams& p) {
    logit = logit > 0.0 ? logit / p.repeat_penalty : logit * p.repeat_penalty;
    return logit - (static_cast<double>(count) * p.frequency_penalty + p.presence_penalty);
}

// Of each token among the last repeat_last_n, once: how often it is there.  Ids ascend.
using Counts = std::vector<std::pair<int32_t, int64_t>>;

Counts count_recent(const int32_t* history, int64_t n_history, const SamplingParams& p) {
    const int64_t n_seen = p.repeat_last_n < 0 ? n_history : std::min(p.repeat_last_n, n_history);
    std::vector<int32_t> seen(history + (n_history - n_seen), history + n_history);
    std::sort(seen.begin(), seen.end());
    Counts counts;
    for (const int32_t token : seen) {
        if (counts.empty() || counts.back().first != token) counts.emplace_back(token, 0);
        counts.back().second++;
    }
    return counts;
}

// The first of `order` with more than `wanted` of weight, by id again.  A heap gives them one by one, since few are
// needed of many.
template <class Before>
void keep_first(std::vector<Candidate>& candidates, double wanted, Before order) {
    const auto after = [&](const Candidate& a, const Candidate& b) { return order(b, a); };
    std::make_heap(candidates.begin(), candidates.end(), after);
    auto rest = candidates.end();
    uint64_t mass = 0;
    do {
        std::pop_heap(candidates.begin(), rest, after);
        mass += (--rest)->weight;
    } while (rest != candidates.begin() && !(static_cast<double>(mass) > wanted));
    candidates.erase(candidates.begin(), rest);
    std::sort(candidates.begin(), candidates.end(), by_id);
}

// Locally typical sampling: the candidates whose surprise is nearest to the expected one.
void keep_typical(std::vector<Candidate>& candidates, double highest, double temperature, double typical_p) {
    const auto scaled = [=](const Candidate& c) { return (c.logit - highest) / temperature; };
    const double total = static_cast<double>(total_weight(candidates));
    uint64_t moment = 0;
    for (const Candidate& c : candidates) moment += moment_of(c.weight, scaled(c));
    const double mean = static_cast<double>(moment) / total;
    const auto distance = [=](const Candidate& c) { return std::fabs(-scaled(c) - mean); };
    keep_first(candidates, typical_p * total, [&](const Candidate& a, const Candidate& b) {
        const double of_a = distance(a), of_b = distance(b);
        return of_a != of_b ? of_a < of_b : a.id < b.id;
    });
}

uint64_t heaviest(const std::vector<Candidate>& candidates) {
    uint64_t top = 0;
    for (const Candidate& c : candidates) top = std::max(top, c.weight);
    return top;
}

int64_t draw(const std::vector<Candidate>& candidates, uint64_t seed, uint64_t position) {
    const uint64_t target = target_of(seed, position, total_weight(candidates));
    uint64_t mass = 0;
    for (const Candidate& c : candidates) {
        mass += c.weight;
        if (mass > target) return c.id;
    }
    // nothing has weight: all are too unlikely to count, so take the likeliest of them
    return std::min_element(candidates.begin(), candidates.end(), before)->id;
}

// candidates: ids ascending, the top k already taken.
int64_t choose(std::vector<Candidate> candidates, double highest, const SamplingParams& p) {
    const double temperature = std::max(p.temperature, kMinTemperature);
    for (Candidate& c : candidates) c.weight = weight_of((c.logit - highest) / temperature);
    if (p.typical_p < 1.0) keep_typical(candidates, highest, temperature, std::max(p.typical_p, 0.0));
    if (p.top_p < 1.0)
        keep_first(candidates, std::max(p.top_p, 0.0) * static_cast<double>(total_weight(candidates)), before);
    if (p.min_p > 0.0) {
        const double floor = std::min(p.min_p, 1.0) * static_cast<double>(heaviest(candidates));
        std::erase_if(candidates, [=](const Candidate& c) { return static_cast<double>(c.weight) < floor; });
    }
    return draw(candidates, p.seed, p.position);
}

// From the candidates that may hold the top k; checks what the penalties made of the logits.
int64_t choose_of(std::vector<Candidate> candidates, size_t k, const SamplingParams& p) {
    double highest = kLowest;
    for (const Candidate& c : candidates) {
        if (std::isnan(c.logit)) return kNotFinite;
        highest = std::max(highest, c.logit);
    }
    if (highest == std::numeric_limits<double>::infinity()) return kNotFinite;
    if (highest == kLowest) return kAllMasked;
    if (p.temperature <= 0.0) return std::min_element(candidates.begin(), candidates.end(), before)->id;
    if (candidates.size() > k) {
        std::nth_element(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(k), candidates.end(),
                         before);
        candidates.resize(k);
    }
    std::sort(candidates.begin(), candidates.end(), by_id);
    return choose(std::move(candidates), highest, p);
}

// The usual case, a few candidates and no mask: the row is read once, and hardly any of it copied.  Tokens with a
// penalty are set aside, so one more of the likeliest is needed for each.
int64_t sample_few(const float* logits, int64_t n_vocab, const Counts& counts, size_t k, const SamplingParams& p) {
    const Scan scanned = scan(logits, n_vocab);
    if (!scanned.is_finite) return kNotFinite;
    std::vector<Candidate> candidates = most_likely(logits, n_vocab, scanned, k + counts.size());
    if (!counts.empty()) {
        std::erase_if(candidates, [&](const Candidate& c) {
            const auto at =
                std::lower_bound(counts.begin(), counts.end(), std::pair{static_cast<int32_t>(c.id), int64_t{0}});
            return at != counts.end() && at->first == c.id;
        });
        for (const auto& [id, count] : counts)
            candidates.push_back({id, penalized(static_cast<double>(logits[id]), count, p), 0});
    }
    return choose_of(std::move(candidates), k, p);
}

int64_t sample_all(const float* logits, int64_t n_vocab, const Counts& counts, const uint8_t* mask, size_t k,
                   const SamplingParams& p) {
    if (!scan(logits, n_vocab).is_finite) return kNotFinite;
    std::vector<double> adjusted(static_cast<size_t>(n_vocab));
    for (size_t i = 0; i < adjusted.size(); i++)
        adjusted[i] = mask == nullptr || mask[i] != 0 ? static_cast<double>(logits[i]) : kLowest;
    for (const auto& [id, count] : counts) {
        double& logit = adjusted[static_cast<size_t>(id)];
        logit = penalized(logit, count, p);
    }
    std::vector<Candidate> candidates;
    if (k < adjusted.size()) {
        candidates = most_likely(adjusted, k);
    } else {
        candidates.reserve(adjusted.size());
        for (size_t id = 0; id < adjusted.size(); id++)
            candidates.push_back({static_cast<int64_t>(id), adjusted[id], 0});
    }
    return choose_of(std::move(candidates), k, p);
}

}  // namespace

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
    philox_rounds(counter.data(), key[0], key[1]);
    return counter;
}

bool has_penalties(const SamplingParams& p) {
    return p.repeat_penalty != 1.0 || p.presence_penalty != 0.0 || p.frequency_penalty != 0.0;
}

int64_t sample(const float* logits, int64_t n_vocab, const int32_t* history, int64_t n_history, const uint8_t* mask,
               const SamplingParams& params) {
    Counts counts = count_recent(history, n_history, params);
    if (!counts.empty() && (counts.front().first < 0 || counts.back().first >= n_vocab)) return kBadHistory;
    if (!has_penalties(params)) counts.clear();
    if (n_vocab > MAX_CHOICES) throw std::invalid_argument("a vocabulary of more than 524288 tokens");
    const size_t n = static_cast<size_t>(n_vocab);
    const size_t k = params.temperature <= 0.0 ? 1
                     : params.top_k <= 0       ? n
                                               : std::min(static_cast<size_t>(params.top_k), n);
    const bool is_few = k + counts.size() <= n / kFewPerVocab;
    if (mask == nullptr && is_few) return sample_few(logits, n_vocab, counts, k, params);
    return sample_all(logits, n_vocab, counts, mask, k, params);
}

Logprobs logprobs(const float* logits, int64_t n_vocab, int64_t token, int64_t top_k) {
    const std::vector<double> wide(logits, logits + n_vocab);
    double highest = kLowest, total = 0.0;
    bool is_finite = true;
    for (const double x : wide) {
        is_finite &= x < std::numeric_limits<double>::infinity();
        highest = std::max(highest, x);
    }
    if (!is_finite || highest == kLowest) return {false, 0.0, {}};
    for (const double x : wide) total += std::exp(x - highest);
    const double log_total = highest + std::log(total);
    Logprobs result{true, wide[static_cast<size_t>(token)] - log_total, {}};
    if (top_k > 0) {
        std::vector<Candidate> top = most_likely(wide, static_cast<size_t>(std::min(top_k, n_vocab)));
        std::sort(top.begin(), top.end(), before);
        for (const Candidate& c : top) result.top.emplace_back(c.id, c.logit - log_total);
    }
    return result;
}

}  // namespace cpu
