#include "sampler.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace cpu {
namespace {

constexpr double kLowest = -std::numeric_limits<double>::infinity();
constexpr double kMinTemperature = 1e-7;

struct Candidate {
    int64_t id;
    double logit;
    double weight;  // exp((logit - highest) / temperature)
};

// More likely first; of equals the lower id.
bool before(const Candidate& a, const Candidate& b) { return a.logit != b.logit ? a.logit > b.logit : a.id < b.id; }

bool by_id(const Candidate& a, const Candidate& b) { return a.id < b.id; }

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
        held.push_back({static_cast<int64_t>(id), logits[id], 0.0});
        std::push_heap(held.begin(), held.end(), before);
    }
    return held;
}

double total_weight(const std::vector<Candidate>& candidates) {
    double total = 0.0;
    for (const Candidate& c : candidates) total += c.weight;
    return total;
}

// Counts how often each of the last repeat_last_n tokens occurred, then changes its logit once.
bool penalize(std::vector<double>& logits, const int32_t* history, int64_t n_history, const SamplingParams& p) {
    const int64_t n_seen = p.repeat_last_n < 0 ? n_history : std::min(p.repeat_last_n, n_history);
    std::vector<int32_t> seen(history + (n_history - n_seen), history + n_history);
    std::sort(seen.begin(), seen.end());
    if (!seen.empty() && (seen.front() < 0 || static_cast<size_t>(seen.back()) >= logits.size())) return false;
    for (size_t i = 0; i < seen.size();) {
        size_t stop = i;
        while (stop < seen.size() && seen[stop] == seen[i]) stop++;
        double& logit = logits[static_cast<size_t>(seen[i])];
        logit = logit > 0.0 ? logit / p.repeat_penalty : logit * p.repeat_penalty;
        logit -= static_cast<double>(stop - i) * p.frequency_penalty + p.presence_penalty;
        i = stop;
    }
    return true;
}

// Locally typical sampling: the candidates whose surprise is nearest to the expected one.
void keep_typical(std::vector<Candidate>& candidates, double highest, double temperature, double typical_p) {
    const double total = total_weight(candidates), log_total = std::log(total);
    const auto surprise = [=](const Candidate& c) { return log_total - (c.logit - highest) / temperature; };
    double entropy = 0.0;
    for (const Candidate& c : candidates) {
        if (c.weight > 0.0) entropy += c.weight / total * surprise(c);
    }
    std::stable_sort(candidates.begin(), candidates.end(), [&](const Candidate& a, const Candidate& b) {
        return std::fabs(surprise(a) - entropy) < std::fabs(surprise(b) - entropy);
    });
    double mass = 0.0;
    size_t n_kept = 0;
    while (n_kept < candidates.size() && !(mass > typical_p)) mass += candidates[n_kept++].weight / total;
    candidates.resize(n_kept);
    std::sort(candidates.begin(), candidates.end(), by_id);
}

// The smallest set of most likely candidates with more than top_p of the weight.  A heap gives them one by
// one, since few are needed of many.
void keep_top_p(std::vector<Candidate>& candidates, double top_p) {
    const double wanted = top_p * total_weight(candidates);
    const auto after = [](const Candidate& a, const Candidate& b) { return before(b, a); };
    std::make_heap(candidates.begin(), candidates.end(), after);
    auto rest = candidates.end();
    double mass = 0.0;
    do {
        std::pop_heap(candidates.begin(), rest, after);
        mass += (--rest)->weight;
    } while (rest != candidates.begin() && !(mass > wanted));
    candidates.erase(candidates.begin(), rest);
    std::sort(candidates.begin(), candidates.end(), by_id);
}

double heaviest(const std::vector<Candidate>& candidates) {
    double top = 0.0;
    for (const Candidate& c : candidates) top = std::max(top, c.weight);
    return top;
}

double uniform(uint64_t seed, uint64_t position) {
    const auto word = [](uint64_t x, int shift) { return static_cast<uint32_t>(x >> shift); };
    const std::array<uint32_t, 4> r =
        philox({word(position, 0), word(position, 32), 0, 0}, {word(seed, 0), word(seed, 32)});
    return static_cast<double>((static_cast<uint64_t>(r[1]) << 32 | r[0]) >> 11) * 0x1.0p-53;
}

int64_t draw(const std::vector<Candidate>& candidates, double u) {
    const double target = u * total_weight(candidates);
    double mass = 0.0;
    for (const Candidate& c : candidates) {
        mass += c.weight;
        if (mass > target) return c.id;
    }
    // nothing has weight: all are too unlikely to count, so take the likeliest of them
    return std::min_element(candidates.begin(), candidates.end(), before)->id;
}

int64_t choose(const std::vector<double>& logits, double highest, const SamplingParams& p) {
    const double temperature = std::max(p.temperature, kMinTemperature);
    const size_t k = p.top_k <= 0 ? logits.size() : std::min(static_cast<size_t>(p.top_k), logits.size());
    std::vector<Candidate> candidates;
    if (k < logits.size()) {
        candidates = most_likely(logits, k);
        std::sort(candidates.begin(), candidates.end(), by_id);
    } else {
        candidates.reserve(k);
        for (size_t id = 0; id < k; id++) candidates.push_back({static_cast<int64_t>(id), logits[id], 0.0});
    }
    for (Candidate& c : candidates) c.weight = std::exp((c.logit - highest) / temperature);
    if (p.typical_p < 1.0) keep_typical(candidates, highest, temperature, p.typical_p);
    if (p.top_p < 1.0) keep_top_p(candidates, std::max(p.top_p, 0.0));
    if (p.min_p > 0.0) {
        const double floor = std::min(p.min_p, 1.0) * heaviest(candidates);
        std::erase_if(candidates, [=](const Candidate& c) { return c.weight < floor; });
    }
    return draw(candidates, uniform(p.seed, p.position));
}

}  // namespace

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> c, std::array<uint32_t, 2> key) {
    for (int round = 0; round < 10; round++) {
        const uint64_t a = uint64_t{0xD2511F53} * c[0], b = uint64_t{0xCD9E8D57} * c[2];
        c = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ key[0], static_cast<uint32_t>(b),
             static_cast<uint32_t>(a >> 32) ^ c[3] ^ key[1], static_cast<uint32_t>(a)};
        key = {key[0] + 0x9E3779B9u, key[1] + 0xBB67AE85u};
    }
    return c;
}

int64_t sample(const float* logits, int64_t n_vocab, const int32_t* history, int64_t n_history, const uint8_t* mask,
               const SamplingParams& params) {
    std::vector<double> adjusted(static_cast<size_t>(n_vocab));
    bool is_bad = false;
    float top = -std::numeric_limits<float>::infinity();
    for (size_t i = 0; i < adjusted.size(); i++) {
        is_bad |= !(logits[i] < std::numeric_limits<float>::infinity());
        top = std::max(top, logits[i]);
        adjusted[i] = mask == nullptr || mask[i] != 0 ? static_cast<double>(logits[i]) : kLowest;
    }
    if (is_bad || std::isinf(top)) return kNotFinite;
    if (!penalize(adjusted, history, n_history, params)) return kBadHistory;
    const auto best = std::max_element(adjusted.begin(), adjusted.end());
    if (std::isnan(*best) || *best == std::numeric_limits<double>::infinity()) return kNotFinite;
    if (*best == kLowest) return kAllMasked;
    if (params.temperature <= 0.0) return best - adjusted.begin();
    return choose(adjusted, *best, params);
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
