// Seeded random inputs, the same on every processor, and what the block formats look like from outside.
#pragma once

#include "kernels.hpp"
#include "memory.hpp"

namespace native {

// SplitMix64.
class Random {
public:
    explicit Random(uint64_t seed) : state_(seed) {}
    uint64_t bits() {
        uint64_t z = state_ += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        return z ^ z >> 31;
    }
    int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
    // about normal, without a function that C libraries round differently
    float normal() {
        int sum = 0;
        for (uint64_t left = bits(), i = 0; i < 4; i++, left >>= 16) sum += static_cast<int>(left & 0xffff) - 32768;
        return static_cast<float>(sum) / 37837.0f;
    }
    // a half of either sign, 2^-7 .. 2
    uint16_t half() {
        const uint64_t v = bits();
        return static_cast<uint16_t>((v & 0x83ff) | (8 + (v >> 16 & 7)) << 10);
    }

private:
    uint64_t state_;
};

struct Format {
    const char* name;
    cpu::DType dtype;
    int64_t block_n, block_bytes;  // elements and bytes of a stored block
    int64_t halves[2];             // offsets of the halves in it, or -1
    bool is_quantized() const { return block_n > 1; }
};

constexpr Format kFormats[] = {
    {"F32", cpu::DType::F32, 1, 4, {-1, -1}},        {"F16", cpu::DType::F16, 1, 2, {0, -1}},
    {"BF16", cpu::DType::BF16, 1, 2, {-1, -1}},      {"Q4_0", cpu::DType::Q4_0, 32, 18, {0, -1}},
    {"Q4_1", cpu::DType::Q4_1, 32, 20, {0, 2}},      {"Q5_0", cpu::DType::Q5_0, 32, 22, {0, -1}},
    {"Q5_1", cpu::DType::Q5_1, 32, 24, {0, 2}},      {"Q8_0", cpu::DType::Q8_0, 32, 34, {0, -1}},
    {"IQ4_NL", cpu::DType::IQ4_NL, 32, 18, {0, -1}}, {"MXFP4", cpu::DType::MXFP4, 32, 17, {-1, -1}},
    {"Q2_K", cpu::DType::Q2_K, 256, 84, {80, 82}},   {"Q3_K", cpu::DType::Q3_K, 256, 110, {108, -1}},
    {"Q4_K", cpu::DType::Q4_K, 256, 144, {0, 2}},    {"Q5_K", cpu::DType::Q5_K, 256, 176, {0, 2}},
    {"Q6_K", cpu::DType::Q6_K, 256, 210, {208, -1}},
};

inline Buffer<float> normals(Random& random, int64_t n, Place place) {
    Buffer<float> made(n, place);
    for (int64_t i = 0; i < n; i++) made[i] = random.normal();
    return made;
}

// n elements, all of them finite; n is whole blocks.
inline Buffer<uint8_t> weights(Random& random, const Format& format, int64_t n, Place place) {
    const int64_t n_blocks = n / format.block_n;
    Buffer<uint8_t> made(n_blocks * format.block_bytes, place);
    for (int64_t i = 0; i < made.size(); i += 8) {
        const uint64_t eight = random.bits();
        std::memcpy(made.data() + i, &eight, static_cast<size_t>(made.size() - i < 8 ? made.size() - i : 8));
    }
    for (int64_t block = 0; block < n_blocks; block++) {
        uint8_t* p = made.data() + block * format.block_bytes;
        for (const int64_t at : format.halves) {
            const uint16_t half = random.half();
            if (at >= 0) std::memcpy(p + at, &half, 2);
        }
        // exponents 2^-7 .. 2^-4; 2^-10 .. 2^-5
        if (format.dtype == cpu::DType::F32) p[3] = static_cast<uint8_t>((p[3] & 0x81) | 0x3c);
        if (format.dtype == cpu::DType::BF16) p[1] = static_cast<uint8_t>((p[1] & 0x81) | 0x3c);
        if (format.dtype == cpu::DType::MXFP4) p[0] = static_cast<uint8_t>(118 + p[0] % 6);
    }
    return made;
}

}  // namespace native
