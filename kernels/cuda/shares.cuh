// What the CPU's sampler and the GPU's have in common: weights and random numbers as whole numbers, in which sums are
// exact, so that any order of adding gives the same token.  Contract: kernels/ops/sampling.py.
//
// Products and sums are rounded one by one; a compiler that made one instruction of both would round once.
#pragma once

#ifdef __CUDACC__
#define SHARED_CODE __device__ inline
#define EXACT_MUL(a, b) __dmul_rn(a, b)
#define EXACT_ADD(a, b) __dadd_rn(a, b)
#else
#include <cmath>
#define SHARED_CODE inline
#define EXACT_MUL(a, b) ((a) * (b))
#define EXACT_ADD(a, b) ((a) + (b))
#endif

typedef unsigned long long u64;

SHARED_CODE double double_of(u64 bits) {
#ifdef __CUDACC__
    return __longlong_as_double((long long)bits);
#else
    double value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

#define WEIGHT_BITS 44      // of the heaviest's weight; 2^19 such are summed without overflow
#define MAX_CHOICES 524288  // 2^19

// exp(scaled) of scaled <= 0, times 2^44, to the nearest whole number: Taylor's polynomial after Cody and Waite.
SHARED_CODE u64 weight_of(double scaled) {
    if (!(scaled > -40.0)) return 0;  // exp(-40) * 2^44 is under a ten-thousandth
    const double turns = rint(EXACT_MUL(scaled, 1.4426950408889634));
    const double rest = EXACT_ADD(EXACT_ADD(scaled, EXACT_MUL(turns, -0.693147180369123816490)),
                                  EXACT_MUL(turns, -1.90821492927058770002e-10));
    const double inverse[14] = {
        1.0,        1.0,         1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,       1.0 / 720,
        1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0};
    double sum = inverse[13];
    for (int i = 12; i >= 0; i--) sum = EXACT_ADD(EXACT_MUL(sum, rest), inverse[i]);
    return (u64)rint(EXACT_MUL(sum, double_of((u64)(1023 + WEIGHT_BITS + (int)turns) << 52)));
}

// weight * -scaled to the nearest whole number: its sum over the kept weight is the mean of -scaled.
SHARED_CODE u64 moment_of(u64 weight, double scaled) {
    return weight == 0 ? 0 : (u64)rint(EXACT_MUL((double)weight, -scaled));
}

// Philox4x32-10 in place.
SHARED_CODE void philox_rounds(unsigned* c, unsigned key0, unsigned key1) {
    for (int round = 0; round < 10; round++) {
        const u64 a = 0xD2511F53ull * c[0], b = 0xCD9E8D57ull * c[2];
        const unsigned first = (unsigned)(b >> 32) ^ c[1] ^ key0, third = (unsigned)(a >> 32) ^ c[3] ^ key1;
        c[0] = first, c[1] = (unsigned)b, c[2] = third, c[3] = (unsigned)a;
        key0 += 0x9E3779B9u, key1 += 0xBB67AE85u;
    }
}

// u times total, rounded down, u in [0, 1) of 53 random bits: the first running sum above it is the draw.
SHARED_CODE u64 target_of(u64 seed, u64 position, u64 total) {
    unsigned c[4] = {(unsigned)position, (unsigned)(position >> 32), 0, 0};
    philox_rounds(c, (unsigned)seed, (unsigned)(seed >> 32));
    const u64 bits = ((u64)c[1] << 32 | c[0]) >> 11;
#ifdef __CUDACC__
    return __umul64hi(bits, total) << 11 | bits * total >> 53;
#else
    return (u64)((unsigned __int128)bits * total >> 53);
#endif
}
