// Vectors of kLanes floats and the few operations on them that differ between instruction sets.
//
// A file that includes this defines KERNEL_NS (a namespace of its own) and KERNEL_LANES (4, 8 or 16), and may
// define KERNEL_AVX2 (with KERNEL_VNNI where there is AVX-VNNI), KERNEL_AVX512 or KERNEL_NEON when it is compiled
// with those instructions.  Without any, every operation is plain C++ on the compiler's vector types:
// KERNEL_LANES 8 is the portable path, 16 is the 512-bit path run on a machine that does not have it.
//
// Everything has internal linkage and no template of the standard library is used in the kernels: an inline
// function that the linker shares between objects could carry one object's instructions into another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(KERNEL_AVX2) || defined(KERNEL_AVX512)
#include <immintrin.h>
#define KERNEL_X86 1
#define KERNEL_UNROLL _Pragma("GCC unroll 8")
#elif defined(KERNEL_NEON)
#include <arm_neon.h>
#define KERNEL_UNROLL _Pragma("GCC unroll 8")
#else
#define KERNEL_UNROLL  // plain C++ is long enough as it is: unrolled, it compiles for minutes
#endif

// Keeps the compiler from turning a chain of additions into a tree, which would need more registers than there are.
#define KERNEL_KEEP_CHAIN(v) asm("" : "+x"(v))
#define KERNEL_LAMBDA __attribute__((always_inline))
#define KERNEL_MEMBER inline __attribute__((always_inline))
#define KERNEL_INLINE static inline __attribute__((always_inline))

namespace KERNEL_NS {
namespace {

constexpr int kLanes = KERNEL_LANES;

typedef float F __attribute__((vector_size(4 * KERNEL_LANES)));
typedef int32_t I __attribute__((vector_size(4 * KERNEL_LANES)));
typedef int8_t S __attribute__((vector_size(KERNEL_LANES)));
typedef uint8_t W __attribute__((vector_size(4 * KERNEL_LANES)));  // packed weights: 4 to a lane of F
typedef double D __attribute__((vector_size(8 * KERNEL_LANES)));
typedef float F8 __attribute__((vector_size(32)));
typedef int32_t I8 __attribute__((vector_size(32)));
typedef uint8_t B8 __attribute__((vector_size(8)));
typedef uint8_t B16 __attribute__((vector_size(16)));
typedef uint8_t B32 __attribute__((vector_size(32)));

template <class V>
KERNEL_INLINE V load(const void* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

template <class V>
KERNEL_INLINE void store(void* p, V v) {
    std::memcpy(p, &v, sizeof v);
}

template <int N>
struct Number {
    static constexpr int value = N;
};

template <class A>
KERNEL_INLINE A least(A a, A b) {
    return b < a ? b : a;
}

template <class A>
KERNEL_INLINE A greatest(A a, A b) {
    return a < b ? b : a;
}

KERNEL_INLINE B32 join(B16 low, B16 high) {
#if defined(KERNEL_X86)
    return (B32)_mm256_set_m128i((__m128i)high, (__m128i)low);
#else
    uint8_t bytes[32];
    store(bytes, low);
    store(bytes + 16, high);
    return load<B32>(bytes);
#endif
}

#if defined(KERNEL_NEON)
template <class Q>
KERNEL_INLINE B32 join(Q low, Q high) {
    return join((B16)low, (B16)high);
}

KERNEL_INLINE uint8x16_t low_half(B32 v) { return load<uint8x16_t>(&v); }
KERNEL_INLINE uint8x16_t high_half(B32 v) { return load<uint8x16_t>(reinterpret_cast<const uint8_t*>(&v) + 16); }
#endif

// The first n lanes from memory, the rest zero.
KERNEL_INLINE F load_part(const void* p, int64_t n) {
    float lanes[kLanes] = {};
    std::memcpy(lanes, p, static_cast<size_t>(n) * sizeof(float));
    return load<F>(lanes);
}

KERNEL_INLINE void store_part(void* p, F v, int64_t n) {
    float lanes[kLanes];
    store(lanes, v);
    std::memcpy(p, lanes, static_cast<size_t>(n) * sizeof(float));
}

KERNEL_INLINE F splat(float x) {
#if defined(KERNEL_AVX512)
    return _mm512_set1_ps(x);
#elif defined(KERNEL_AVX2)
    return _mm256_set1_ps(x);
#elif defined(KERNEL_NEON)
    return (F)vdupq_n_f32(x);
#else
    F v;
    for (int i = 0; i < kLanes; i++) v[i] = x;
    return v;
#endif
}

KERNEL_INLINE F8 splat_8(float x) {
#if defined(KERNEL_X86)
    return _mm256_set1_ps(x);
#else
    return F8{x, x, x, x, x, x, x, x};
#endif
}

// a * b + c, rounded once where the instruction set can
KERNEL_INLINE F fma(F a, F b, F c) {
#if defined(KERNEL_AVX512)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(KERNEL_AVX2)
    return _mm256_fmadd_ps(a, b, c);
#elif defined(KERNEL_NEON)
    return (F)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

#if KERNEL_LANES != 8
KERNEL_INLINE F8 fma(F8 a, F8 b, F8 c) {
#if defined(KERNEL_X86)
    return _mm256_fmadd_ps(a, b, c);
#elif defined(KERNEL_NEON)
    const auto low = [](F8 v) { return (float32x4_t)low_half((B32)v); };
    const auto high = [](F8 v) { return (float32x4_t)high_half((B32)v); };
    return (F8)join(vfmaq_f32(low(c), low(a), low(b)), vfmaq_f32(high(c), high(a), high(b)));
#else
    return a * b + c;
#endif
}
#endif

KERNEL_INLINE F select(I mask, F yes, F no) { return (F)(((I)yes & mask) | ((I)no & ~mask)); }

// a > b ? a : b: a NaN in b stays, one in a does not.
KERNEL_INLINE F maximum(F a, F b) {
#if defined(KERNEL_AVX512)
    return _mm512_max_ps(a, b);
#elif defined(KERNEL_AVX2)
    return _mm256_max_ps(a, b);
#else
    return select(a > b, a, b);
#endif
}

// Sums halves onto one another: the same order whatever surrounds it.
KERNEL_INLINE float sum(F8 v) {
#if defined(KERNEL_X86)
    const __m128 fours = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 twos = _mm_add_ps(fours, _mm_movehl_ps(fours, fours));
    return _mm_cvtss_f32(_mm_add_ss(twos, _mm_movehdup_ps(twos)));
#else
    float x[8];
    store(x, v);
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
#endif
}

#if KERNEL_LANES == 4
KERNEL_INLINE float sum(F v) { return (v[0] + v[2]) + (v[1] + v[3]); }
#elif KERNEL_LANES == 16
KERNEL_INLINE float sum(F v) {
    float x[16];
    store(x, v);
    return sum(load<F8>(x) + load<F8>(x + 8));
}
#endif

// Of lanes that are not NaN.
KERNEL_INLINE float largest(F v) {
#if defined(KERNEL_AVX512)
    return _mm512_reduce_max_ps(v);
#elif defined(KERNEL_AVX2)
    const __m128 fours = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 twos = _mm_max_ps(fours, _mm_movehl_ps(fours, fours));
    return _mm_cvtss_f32(_mm_max_ss(twos, _mm_movehdup_ps(twos)));
#else
    float x[kLanes];
    store(x, v);
    float top = x[0];
    for (int i = 1; i < kLanes; i++) top = x[i] > top ? x[i] : top;
    return top;
#endif
}

// ---- half precision, bfloat16

KERNEL_INLINE float from_bits(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

KERNEL_INLINE uint32_t to_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

KERNEL_INLINE float half_to_float(uint16_t h) {
#if defined(KERNEL_X86)
    return _cvtsh_ss(h);
#elif defined(KERNEL_NEON)
    return static_cast<float>(load<__fp16>(&h));
#else
    const uint32_t magnitude = h & 0x7fffu, sign = static_cast<uint32_t>(h & 0x8000u) << 16;
    // multiplying by 2^112 moves the exponent's bias from 15 to 127 and makes subnormals right as well
    uint32_t bits = to_bits(from_bits(magnitude << 13) * from_bits(0x77800000u));
    if (magnitude >= 0x7c00u) bits = 0x7f800000u | (magnitude & 0x3ffu) << 13;
    return from_bits(bits | sign);
#endif
}

// Nearest half, ties to even; too large becomes infinity.
KERNEL_INLINE uint16_t float_to_half(float x) {
#if defined(KERNEL_X86)
    return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
#elif defined(KERNEL_NEON)
    const __fp16 half = static_cast<__fp16>(x);
    return load<uint16_t>(&half);
#else
    const uint32_t bits = to_bits(x), magnitude = bits & 0x7fffffffu;
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    uint32_t half;
    if (magnitude > 0x7f800000u) {
        half = 0x7e00u;
    } else if (magnitude >= 0x47800000u) {
        half = 0x7c00u;
    } else if (magnitude < 0x38800000u) {  // subnormal: let an addition do the rounding
        half = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
    } else {
        half = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
    }
    return static_cast<uint16_t>(half | sign);
#endif
}

KERNEL_INLINE float load_half(const void* p) { return half_to_float(load<uint16_t>(p)); }

// The elements of a row in one of the plain types, as floats.
struct AsF32 {
    static constexpr size_t kBytes = 4;
    static F vector(const uint8_t* p) { return load<F>(p); }
    static F8 eight(const uint8_t* p) { return load<F8>(p); }
    static float scalar(const uint8_t* p) { return load<float>(p); }
};

struct AsF16 {
    static constexpr size_t kBytes = 2;
    static F vector(const uint8_t* p) {
#if defined(KERNEL_AVX512)
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(KERNEL_AVX2)
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(KERNEL_NEON)
        return (F)vcvt_f32_f16(load<float16x4_t>(p));
#else
        F v;
        for (int i = 0; i < kLanes; i++) v[i] = load_half(p + 2 * i);
        return v;
#endif
    }
    static F8 eight(const uint8_t* p) {
#if defined(KERNEL_X86)
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(KERNEL_NEON)
        return (F8)join(vcvt_f32_f16(load<float16x4_t>(p)), vcvt_f32_f16(load<float16x4_t>(p + 8)));
#else
        F8 v;
        for (int i = 0; i < 8; i++) v[i] = load_half(p + 2 * i);
        return v;
#endif
    }
    static float scalar(const uint8_t* p) { return load_half(p); }
};

struct AsBF16 {
    static constexpr size_t kBytes = 2;
    static F vector(const uint8_t* p) {
        typedef uint16_t H __attribute__((vector_size(2 * KERNEL_LANES)));
        return (F)(__builtin_convertvector(load<H>(p), I) << 16);
    }
    static F8 eight(const uint8_t* p) {
        typedef uint16_t H8 __attribute__((vector_size(16)));
        return (F8)(__builtin_convertvector(load<H8>(p), I8) << 16);
    }
    static float scalar(const uint8_t* p) { return from_bits(static_cast<uint32_t>(load<uint16_t>(p)) << 16); }
};

template <class T>
KERNEL_INLINE F8 load_part_of_8(const uint8_t* p, int64_t n) {
    float lanes[8] = {};
    for (int64_t i = 0; i < n; i++) lanes[i] = T::scalar(p + T::kBytes * i);
    return load<F8>(lanes);
}

// ---- functions

// Adding and subtracting this rounds to the nearest integer, ties to even, for |x| < 2^22.
constexpr float kRound = 12582912.0f;

// e^x to 2 ulp; overflows to infinity, underflows through subnormals to 0, keeps NaN.  Cephes expf's polynomial.
KERNEL_INLINE F exp(F x) {
    const F bounded = select(x < splat(-104.0f), splat(-104.0f), select(x > splat(89.5f), splat(89.5f), x));
    const F safe = select(x == x, bounded, splat(0.0f));
    const F n = (fma(safe, splat(1.44269504088896341f), splat(kRound))) - splat(kRound);
    F r = fma(n, splat(-0.693359375f), safe);
    r = fma(n, splat(2.12194440e-4f), r);
    F p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(p * r, r, r) + splat(1.0f);
    // 2^n in two factors, since n = 128 and n = -149 have no exponent of their own
    const I whole = __builtin_convertvector(n, I), first = whole >> 1;
    const F result = p * (F)((first + 127) << 23) * (F)((whole - first + 127) << 23);
    return select(x == x, result, x);
}

}  // namespace
}  // namespace KERNEL_NS
