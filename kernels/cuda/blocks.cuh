// Block formats of GGUF files (kernels/ops/quant.py): 32 weights at a time as int8 with scales and minima.
// The types' names and numbers (F32 = 0, ...) stand before every module: sources.py has them from kernels/dtype.py.
#pragma once

#include "common.cuh"

// 32 consecutive weights: weight i is scale[i / 16] * q[i] - least[i / 16].  Every format fits this.
struct Unit {
    int q[8];  // four int8 each, in order
    float scale[2], least[2];
};

// Fields of a block begin at odd places in some formats: bytes and pairs of bytes are all that may be read.
__device__ inline int pair_at(const u8* p) { return ((const u16*)p)[0]; }
__device__ inline int word_at(const u8* p) { return pair_at(p) | pair_at(p + 2) << 16; }
__device__ inline int bytes_at(const u8* p) { return p[0] | p[1] << 8 | p[2] << 16 | p[3] << 24; }
__device__ inline float half_at(const u8* p) { return half_to_float(((const u16*)p)[0]); }

// Each of the four bytes of x, less the same of y.
__device__ inline int less(int x, int y) { return __vsub4(x, y); }

__device__ inline float power_of_two(int e) {  // 2^(e - 128), of which e = 0 and 1 are subnormal
    return __int_as_float(e >= 2 ? (e - 1) << 23 : 0x00200000 << e);
}

__device__ inline int level_iq4(int i) {
    const int words[4] = {(int)0xbfad9881u, (int)0xf6eaddcfu, 0x26190d01, 0x71594535};
    return (i8)(words[i >> 2] >> 8 * (i & 3));
}

__device__ inline int level_fp4(int i) {
    const int magnitude = (int)(0xc8643210u >> 4 * (i & 7) & 15);
    return i & 8 ? -magnitude : magnitude;
}

__device__ inline int levels(int nibbles, int is_fp4) {
    int word = 0;
    for (int b = 0; b < 4; b++) {
        const int i = nibbles >> 8 * b & 15;
        word |= ((is_fp4 ? level_fp4(i) : level_iq4(i)) & 255) << 8 * b;
    }
    return word;
}

// Bits 4 w .. 4 w + 3 of `bits`, each in a byte of its own as 16.
__device__ inline int fifth_bits(u32 bits, int w) {
    const u32 four = bits >> 4 * w;
    return (int)((four & 1) << 4 | (four & 2) << 11 | (four & 4) << 18 | (four & 8) << 25);
}

// Scale and minimum of 32 weights of Q4_K and Q5_K: two halves, and twelve bytes that hold eight pairs of six bits.
__device__ inline void scales_of(const u8* block, int part, Unit& u) {
    const u8* packed = block + 4 + part;
    int scale = packed[0] & 63, least = packed[4] & 63;
    if (part >= 4) {
        scale = (packed[4] & 15) | packed[-4] >> 6 << 4;
        least = packed[4] >> 4 | packed[0] >> 6 << 4;
    }
    u.scale[0] = u.scale[1] = half_at(block) * (float)scale;
    u.least[0] = u.least[1] = half_at(block + 2) * (float)least;
}

template <int kType>
struct Format;

// Formats of 32 weights a block: 4 bits in `qs`, the first half in low nibbles.
template <int kType, int kBytes, int kQs>
struct Small {
    static const int bytes = kBytes, weights = 32;
    __device__ static inline void nibbles(const u8* block, Unit& u) {
        for (int w = 0; w < 4; w++) {
            const int packed = kBytes % 2 ? bytes_at(block + kQs + 4 * w) : word_at(block + kQs + 4 * w);
            u.q[w] = packed & 0x0f0f0f0f;
            u.q[w + 4] = packed >> 4 & 0x0f0f0f0f;
        }
    }
    __device__ static inline void fifths(const u8* block, Unit& u) {
        const u32 bits = (u32)word_at(block + kQs - 4);
        for (int w = 0; w < 8; w++) u.q[w] |= fifth_bits(bits, w);
    }
    __device__ static inline void shift(Unit& u, int by) {
        for (int w = 0; w < 8; w++) u.q[w] = less(u.q[w], by * 0x01010101);
    }
    __device__ static inline void scales(Unit& u, float scale, float least) {
        u.scale[0] = u.scale[1] = scale;
        u.least[0] = u.least[1] = least;
    }
};

template <>
struct Format<Q4_0> : Small<Q4_0, 18, 2> {
    __device__ static inline void load(const u8* block, int, Unit& u) {
        nibbles(block, u);
        shift(u, 8);
        scales(u, half_at(block), 0.0f);
    }
};

template <>
struct Format<Q4_1> : Small<Q4_1, 20, 4> {
    __device__ static inline void load(const u8* block, int, Unit& u) {
        nibbles(block, u);
        scales(u, half_at(block), -half_at(block + 2));
    }
};

template <>
struct Format<Q5_0> : Small<Q5_0, 22, 6> {
    __device__ static inline void load(const u8* block, int, Unit& u) {
        nibbles(block, u);
        fifths(block, u);
        shift(u, 16);
        scales(u, half_at(block), 0.0f);
    }
};

template <>
struct Format<Q5_1> : Small<Q5_1, 24, 8> {
    __device__ static inline void load(const u8* block, int, Unit& u) {
        nibbles(block, u);
        fifths(block, u);
        scales(u, half_at(block), -half_at(block + 2));
    }
};

template <>
struct Format<Q8_0> : Small<Q8_0, 34, 2> {
    __device__ static inline void load(const u8* block, int, Unit& u) {
        for (int w = 0; w < 8; w++) u.q[w] = word_at(block + 2 + 4 * w);
        scales(u, half_at(block), 0.0f);
    }
};

template <>
struct Format<IQ4_NL> : Small<IQ4_NL, 18, 2> {
    __device__ static inline void load(const u8* block, int, Unit& u) {
        nibbles(block, u);
        for (int w = 0; w < 8; w++) u.q[w] = levels(u.q[w], 0);
        scales(u, half_at(block), 0.0f);
    }
};

template <>
struct Format<MXFP4> : Small<MXFP4, 17, 1> {
    __device__ static inline void load(const u8* block, int, Unit& u) {
        nibbles(block, u);
        for (int w = 0; w < 8; w++) u.q[w] = levels(u.q[w], 1);
        scales(u, power_of_two(block[0]), 0.0f);
    }
};

// Formats of 256 weights a block; part: which 32 of them.
template <>
struct Format<Q2_K> {
    static const int bytes = 84, weights = 256;
    __device__ static inline void load(const u8* block, int part, Unit& u) {
        const u8* qs = block + 16 + 32 * (part / 4);
        for (int w = 0; w < 8; w++) u.q[w] = word_at(qs + 4 * w) >> 2 * (part % 4) & 0x03030303;
        const float d = half_at(block + 80), dmin = half_at(block + 82);
        for (int h = 0; h < 2; h++) {
            const int packed = block[2 * part + h];
            u.scale[h] = d * (float)(packed & 15);
            u.least[h] = dmin * (float)(packed >> 4);
        }
    }
};

template <>
struct Format<Q3_K> {
    static const int bytes = 110, weights = 256;
    __device__ static inline void load(const u8* block, int part, Unit& u) {
        const u8 *qs = block + 32 + 32 * (part / 4), *packed = block + 96;
        for (int w = 0; w < 8; w++) {
            const int low = word_at(qs + 4 * w) >> 2 * (part % 4) & 0x03030303;
            const int is_high = word_at(block + 4 * w) >> part & 0x01010101;
            u.q[w] = less(low | is_high << 2, 0x04040404);
        }
        const float d = half_at(block + 108);
        for (int h = 0; h < 2; h++) {
            const int j = 2 * part + h;
            const int low = j < 8 ? packed[j] & 15 : packed[j - 8] >> 4, high = packed[8 + j % 4] >> 2 * (j / 4) & 3;
            u.scale[h] = d * (float)((low | high << 4) - 32);
            u.least[h] = 0.0f;
        }
    }
};

template <>
struct Format<Q4_K> {
    static const int bytes = 144, weights = 256;
    __device__ static inline void load(const u8* block, int part, Unit& u) {
        const u8* qs = block + 16 + 32 * (part / 2);
        for (int w = 0; w < 8; w++) u.q[w] = word_at(qs + 4 * w) >> 4 * (part % 2) & 0x0f0f0f0f;
        scales_of(block, part, u);
    }
};

template <>
struct Format<Q5_K> {
    static const int bytes = 176, weights = 256;
    __device__ static inline void load(const u8* block, int part, Unit& u) {
        const u8* qs = block + 48 + 32 * (part / 2);
        for (int w = 0; w < 8; w++) {
            const int low = word_at(qs + 4 * w) >> 4 * (part % 2) & 0x0f0f0f0f;
            u.q[w] = low | (word_at(block + 16 + 4 * w) >> part & 0x01010101) << 4;
        }
        scales_of(block, part, u);
    }
};

template <>
struct Format<Q6_K> {
    static const int bytes = 210, weights = 256;
    __device__ static inline void load(const u8* block, int part, Unit& u) {
        const int quarter = part % 4;
        const u8 *ql = block + 64 * (part / 4) + 32 * (quarter % 2), *qh = block + 128 + 32 * (part / 4);
        for (int w = 0; w < 8; w++) {
            const int low = word_at(ql + 4 * w) >> 4 * (quarter / 2) & 0x0f0f0f0f;
            const int high = word_at(qh + 4 * w) >> 2 * quarter & 0x03030303;
            u.q[w] = less(low | high << 4, 0x20202020);
        }
        const float d = half_at(block + 208);
        for (int h = 0; h < 2; h++) {
            u.scale[h] = d * (float)(i8)block[192 + 2 * part + h];
            u.least[h] = 0.0f;
        }
    }
};

// Unit `at` of a row.
template <int kType>
__device__ inline void load_unit(const u8* row, int at, Unit& u) {
    const int per_block = Format<kType>::weights / 32;
    Format<kType>::load(row + (i64)(at / per_block) * Format<kType>::bytes, at % per_block, u);
}

// One weight in the order of kernels/ops/quant.py: scale * integer - minimum, without fusing.
template <int kType>
__device__ inline float weight_of(const u8* row, int i) {
    Unit u;
    load_unit<kType>(row, i / 32, u);
    const int in = i % 32, q = (i8)(u.q[in / 4] >> 8 * (in % 4));
    return __fsub_rn(__fmul_rn(u.scale[in / 16], (float)q), u.least[in / 16]);
}

// Element i of a row of any type.
__device__ inline float element_of(int dtype, const u8* row, int i) {
    switch (dtype) {
        case F32:
            return __int_as_float(word_at(row + 4 * (i64)i));
        case F16:
            return half_at(row + 2 * (i64)i);
        case BF16:
            return bf16_of(((const u16*)row)[i]);
        case Q4_0:
            return weight_of<Q4_0>(row, i);
        case Q4_1:
            return weight_of<Q4_1>(row, i);
        case Q5_0:
            return weight_of<Q5_0>(row, i);
        case Q5_1:
            return weight_of<Q5_1>(row, i);
        case Q8_0:
            return weight_of<Q8_0>(row, i);
        case Q2_K:
            return weight_of<Q2_K>(row, i);
        case Q3_K:
            return weight_of<Q3_K>(row, i);
        case Q4_K:
            return weight_of<Q4_K>(row, i);
        case Q5_K:
            return weight_of<Q5_K>(row, i);
        case Q6_K:
            return weight_of<Q6_K>(row, i);
        case IQ4_NL:
            return weight_of<IQ4_NL>(row, i);
        default:
            return weight_of<MXFP4>(row, i);
    }
}
