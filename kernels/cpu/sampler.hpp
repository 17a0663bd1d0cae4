// Sampling over the whole vocabulary.  Contract and reference: kernels/ops/sampling.py.
#pragma once

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

namespace cpu {

struct SamplingParams {
    double temperature;
    int64_t top_k;
    double top_p, min_p, typical_p;
    int64_t repeat_last_n;
    double repeat_penalty, presence_penalty, frequency_penalty;
    uint64_t seed, position;
};

// Instead of a token
constexpr int64_t kNotFinite = -1;   // NaN or +infinity among the logits, or no finite one
constexpr int64_t kAllMasked = -2;   // the mask forbids every finite logit
constexpr int64_t kBadHistory = -3;  // a history token outside the vocabulary

// Philox4x32-10: four random words for a counter under a key.
std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// mask [n_vocab] of 0 (forbidden) and 1, or null.
int64_t sample(const float* logits, int64_t n_vocab, const int32_t* history, int64_t n_history, const uint8_t* mask,
               const SamplingParams& params);

// Whether the history matters at all.
bool has_penalties(const SamplingParams& params);

struct Logprobs {
    bool is_finite;
    double chosen;
    std::vector<std::pair<int64_t, double>> top;  // descending
};

Logprobs logprobs(const float* logits, int64_t n_vocab, int64_t token, int64_t top_k);

}  // namespace cpu
