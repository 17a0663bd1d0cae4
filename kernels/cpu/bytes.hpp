// Bytes in vectors: tables, products with activations, transposition.  To be included after simd.hpp.
#pragma once

namespace KERNEL_NS {
namespace {

// table[index] for each byte, index in 0..15
KERNEL_INLINE B32 look_up(B16 table, B32 index) {
#if defined(KERNEL_X86)
    return (B32)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256((__m128i)table), (__m256i)index);
#elif defined(KERNEL_NEON)
    return join(vqtbl1q_u8((uint8x16_t)table, low_half(index)), vqtbl1q_u8((uint8x16_t)table, high_half(index)));
#else
    uint8_t entries[16], at[32];
    store(entries, table);
    store(at, index);
    for (int i = 0; i < 32; i++) at[i] = entries[at[i]];
    return load<B32>(at);
#endif
}

// Byte i is `value` where bit i is set, else 0.
KERNEL_INLINE B32 spread_bits(uint32_t bits, uint8_t value) {
#if defined(KERNEL_X86)
    const __m256i source = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i mask = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201u));
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int32_t>(bits)), source);
    const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, mask), mask);
    return (B32)_mm256_and_si256(set, _mm256_set1_epi8(static_cast<char>(value)));
#elif defined(KERNEL_NEON)
    const uint8x16_t source = vcombine_u8(vdup_n_u8(0), vdup_n_u8(1)), all = (uint8x16_t)vdupq_n_u32(bits);
    const uint8x16_t mask = (uint8x16_t)vdupq_n_u64(0x8040201008040201u), set = vdupq_n_u8(value);
    const uint8x16_t low = vtstq_u8(vqtbl1q_u8(all, source), mask);
    const uint8x16_t high = vtstq_u8(vqtbl1q_u8(all, vaddq_u8(source, vdupq_n_u8(2))), mask);
    return join(vandq_u8(low, set), vandq_u8(high, set));
#else
    uint8_t bytes[32];
    for (int i = 0; i < 32; i++) bytes[i] = static_cast<uint8_t>((bits >> i & 1u) * value);
    return load<B32>(bytes);
#endif
}

// ---- dot products: lane i adds four products of bytes, one factor from each lane, the other the same for all

#if defined(KERNEL_AVX2) && !defined(KERNEL_VNNI)
constexpr bool kHasPairSums = true;  // sums of pairs in 16 bits, joined at the end
#else
constexpr bool kHasPairSums = false;
#endif
#if defined(KERNEL_X86) || KERNEL_LANES == 16
constexpr bool kTakesUnsigned = true;  // the bytes in lanes are unsigned; the emulated path does as AVX-512 does
#else
constexpr bool kTakesUnsigned = false;
#endif

// Every lane begins with `start`: a sum, or where sums are of pairs, two of 16 bits.
KERNEL_INLINE I dot_start(int32_t start) {
#if defined(KERNEL_AVX512)
    return (I)_mm512_set1_epi32(start);
#elif defined(KERNEL_AVX2)
    return (I)_mm256_set1_epi32(start);
#else
    return I{} + start;
#endif
}

typedef int8_t S4 __attribute__((vector_size(4 * KERNEL_LANES)));
typedef int16_t H4 __attribute__((vector_size(8 * KERNEL_LANES)));

// Sums of four neighbours.
KERNEL_INLINE I sum_fours(H4 products) {
    typedef int32_t I2 __attribute__((vector_size(8 * KERNEL_LANES)));
    typedef uint64_t U __attribute__((vector_size(8 * KERNEL_LANES)));
    const I2 halves = (I2)products, pairs = (halves >> 16) + (I2)((I2)(halves << 16) >> 16);
    const U wide = (U)pairs;  // the low half of a modular sum is right whatever the high half is
    return __builtin_convertvector(wide + (wide >> 32), I);
}

// sum + bytes * x: x is four signed bytes in -127..127.
KERNEL_INLINE I dot_add(I sum, W bytes, const int8_t* x) {
#if defined(KERNEL_AVX512)
    return (I)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)bytes, _mm512_set1_epi32(load<int32_t>(x)));
#elif defined(KERNEL_VNNI)
    return (I)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)bytes, _mm256_set1_epi32(load<int32_t>(x)));
#elif defined(KERNEL_AVX2)
    __m256i total =
        _mm256_add_epi16((__m256i)sum, _mm256_maddubs_epi16((__m256i)bytes, _mm256_set1_epi32(load<int32_t>(x))));
    KERNEL_KEEP_CHAIN(total);
    return (I)total;
#elif defined(KERNEL_NEON)
    return (I)vdotq_s32((int32x4_t)sum, (int8x16_t)bytes, (int8x16_t)vdupq_n_s32(load<int32_t>(x)));
#else
    const S4 same = (S4)(I{} + load<int32_t>(x));
    H4 products;
    if constexpr (kTakesUnsigned) {
        products = __builtin_convertvector(bytes, H4) * __builtin_convertvector(same, H4);
    } else {
        products = __builtin_convertvector((S4)bytes, H4) * __builtin_convertvector(same, H4);
    }
    return sum + sum_fours(products);
#endif
}

// The lanes' sums in 32 bits.
KERNEL_INLINE I dot_total(I sum) {
#if defined(KERNEL_AVX2) && !defined(KERNEL_VNNI)
    return (I)_mm256_madd_epi16((__m256i)sum, _mm256_set1_epi16(1));
#else
    return sum;
#endif
}

// The same word of four bytes in every lane.
KERNEL_INLINE W splat_word(const int8_t* p) {
    I v;
    const int32_t word = load<int32_t>(p);
#if defined(KERNEL_AVX512)
    v = (I)_mm512_set1_epi32(word);
#elif defined(KERNEL_AVX2)
    v = (I)_mm256_set1_epi32(word);
#else
    v = I{} + word;
#endif
    return (W)v;
}

// total + the products of four neighbouring signed bytes, each in -127..127.
KERNEL_INLINE I add_dot(I total, W a, W b) {
#if defined(KERNEL_AVX512)
    const __m512i x = (__m512i)a, y = (__m512i)b;
    const __m512i flipped = _mm512_mask_sub_epi8(y, _mm512_movepi8_mask(x), _mm512_setzero_si512(), y);
    return (I)_mm512_dpbusd_epi32((__m512i)total, _mm512_abs_epi8(x), flipped);
#elif defined(KERNEL_AVX2)
    const __m256i x = (__m256i)a;
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8((__m256i)b, x));
    return total + (I)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#elif defined(KERNEL_NEON)
    return (I)vdotq_s32((int32x4_t)total, (int8x16_t)a, (int8x16_t)b);
#else
    return total + sum_fours(__builtin_convertvector((S4)a, H4) * __builtin_convertvector((S4)b, H4));
#endif
}

// kLanes signed bytes as floats.
KERNEL_INLINE F bytes_to_floats(const void* p) {
#if defined(KERNEL_AVX512)
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
#elif defined(KERNEL_AVX2)
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))));
#else
    return __builtin_convertvector(__builtin_convertvector(load<S>(p), I), F);
#endif
}

// sum + products of 16-bit integers, two to a lane: x is two of them.
template <class Sum, class Integers>
KERNEL_INLINE Sum dot_add_wide(Sum sum, Integers integers, const int16_t* x) {
#if defined(KERNEL_AVX2)
    __m256i total =
        _mm256_add_epi32((__m256i)sum, _mm256_madd_epi16((__m256i)integers, _mm256_set1_epi32(load<int32_t>(x))));
    KERNEL_KEEP_CHAIN(total);
    return (Sum)total;
#else
    (void)integers, (void)x;  // no path has both wide panels and none of these instructions
    return sum;
#endif
}

// The same for vectors of 256 bits, whatever W has.
#if KERNEL_LANES == 8
KERNEL_INLINE I8 dot_total_8(I8 sum) { return dot_total(sum); }
KERNEL_INLINE I8 dot_start_8(int32_t start) { return dot_start(start); }
KERNEL_INLINE I8 dot_add_8(I8 sum, B32 bytes, const int8_t* x) { return dot_add(sum, bytes, x); }
#else
KERNEL_INLINE I8 dot_total_8(I8 sum) { return sum; }
KERNEL_INLINE I8 dot_start_8(int32_t start) { return I8{} + start; }
KERNEL_INLINE I8 dot_add_8(I8 sum, B32 bytes, const int8_t* x) {
#if defined(KERNEL_AVX512)
    return (I8)_mm256_dpbusd_epi32((__m256i)sum, (__m256i)bytes, _mm256_set1_epi32(load<int32_t>(x)));
#else
    constexpr int kParts = KERNEL_LANES < 8 ? 8 / KERNEL_LANES : 1;
    W parts[kParts] = {};
    std::memcpy(parts, &bytes, sizeof bytes);
    I sums[kParts] = {};
    std::memcpy(sums, &sum, sizeof sum);
    for (int i = 0; i < kParts; i++) sums[i] = dot_add(sums[i], parts[i], x);
    std::memcpy(&sum, sums, sizeof sum);
    return sum;
#endif
}
#endif

// Of v's bytes as dwords: the even bytes of each as two 16-bit integers, or the odd ones.
template <class V>
KERNEL_INLINE V widen_even(V v) {
    typedef int16_t H __attribute__((vector_size(sizeof(V))));
    return (V)((H)((H)v << 8) >> 8);
}

template <class V>
KERNEL_INLINE V widen_odd(V v) {
    typedef int16_t H __attribute__((vector_size(sizeof(V))));
    return (V)((H)v >> 8);
}

// Lane i: the sum of the products of bytes 4 i .. 4 i + 3, those of `bytes` as dot_add takes them, or signed.
template <bool kSigned>
KERNEL_INLINE I8 dot_fours(B32 bytes, B32 x) {
    static_assert(!kSigned || kHasPairSums, "only AVX2 without VNNI has a product of signed bytes here");
#if defined(KERNEL_AVX512)
    return (I8)_mm256_dpbusd_epi32(_mm256_setzero_si256(), (__m256i)bytes, (__m256i)x);
#elif defined(KERNEL_VNNI)
    return (I8)_mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), (__m256i)bytes, (__m256i)x);
#elif defined(KERNEL_AVX2)
    const __m256i a = (__m256i)bytes, b = (__m256i)x;
    const __m256i pairs =
        kSigned ? _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(b, a)) : _mm256_maddubs_epi16(a, b);
    return (I8)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#elif defined(KERNEL_NEON)
    const auto dot = [](uint8x16_t a, uint8x16_t b)
                         KERNEL_LAMBDA { return vdotq_s32(vdupq_n_s32(0), (int8x16_t)a, (int8x16_t)b); };
    return (I8)join(dot(low_half(bytes), low_half(x)), dot(high_half(bytes), high_half(x)));
#else
    int32_t sums[8] = {};
    for (int i = 0; i < 32; i++) {
        const int byte = kTakesUnsigned ? bytes[i] : static_cast<int8_t>(bytes[i]);
        sums[i / 4] += byte * static_cast<int8_t>(x[i]);
    }
    return load<I8>(sums);
#endif
}

// Lane l < 4: the sum of the first half of vector l, lane 4 + l: of its second half.
KERNEL_INLINE I8 add_halves(const I8 (&v)[4]) {
#if defined(KERNEL_X86)
    __m256i pairs[2];
    for (int i = 0; i < 2; i++) {
        const __m256i a = (__m256i)v[2 * i], b = (__m256i)v[2 * i + 1];
        pairs[i] = _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    }
    return (I8)_mm256_add_epi32(_mm256_unpacklo_epi64(pairs[0], pairs[1]), _mm256_unpackhi_epi64(pairs[0], pairs[1]));
#elif defined(KERNEL_NEON)
    int32x4_t sums[2];
    for (int half = 0; half < 2; half++) {
        int32x4_t h[4];
        for (int i = 0; i < 4; i++) h[i] = (int32x4_t)(half == 0 ? low_half((B32)v[i]) : high_half((B32)v[i]));
        sums[half] = vpaddq_s32(vpaddq_s32(h[0], h[1]), vpaddq_s32(h[2], h[3]));
    }
    return (I8)join(sums[0], sums[1]);
#else
    I8 sums{};
    for (int l = 0; l < 8; l++) {
        for (int i = 0; i < 4; i++) sums[l] += v[l % 4][l / 4 * 4 + i];
    }
    return sums;
#endif
}

// Lane l < 4: lanes l and 4 + l of a, lane 4 + l: of b.
KERNEL_INLINE I8 join_halves(I8 a, I8 b) {
#if defined(KERNEL_X86)
    return (I8)_mm256_add_epi32(_mm256_permute2x128_si256((__m256i)a, (__m256i)b, 0x20),
                                _mm256_permute2x128_si256((__m256i)a, (__m256i)b, 0x31));
#elif defined(KERNEL_NEON)
    const auto both = [](I8 v) { return vaddq_s32((int32x4_t)low_half((B32)v), (int32x4_t)high_half((B32)v)); };
    return (I8)join(both(a), both(b));
#else
    I8 sums{};
    for (int l = 0; l < 4; l++) {
        sums[l] = a[l] + a[4 + l];
        sums[4 + l] = b[l] + b[4 + l];
    }
    return sums;
#endif
}

// ---- transposition

#if defined(KERNEL_NEON)
// Dword c of row r to dword r of row c.
KERNEL_INLINE void transpose_of_4(const uint32x4_t (&rows)[4], uint32x4_t (&columns)[4]) {
    uint32x4_t pairs[4];
    for (int i = 0; i < 4; i += 2) {
        pairs[i] = vtrn1q_u32(rows[i], rows[i + 1]);
        pairs[i + 1] = vtrn2q_u32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        columns[i] = (uint32x4_t)vtrn1q_u64((uint64x2_t)pairs[i], (uint64x2_t)pairs[i + 2]);
        columns[i + 2] = (uint32x4_t)vtrn2q_u64((uint64x2_t)pairs[i], (uint64x2_t)pairs[i + 2]);
    }
}
#endif

// Dword i of result c is dword c of the 16 bytes at p[i].
KERNEL_INLINE void columns_of(const uint8_t* const* p, int64_t at, B32 (&columns)[4]) {
#if defined(KERNEL_X86)
    __m256i a[4], b[4];
    for (int r = 0; r < 4; r++) a[r] = _mm256_set_m128i(load<__m128i>(p[r + 4] + at), load<__m128i>(p[r] + at));
    for (int i = 0; i < 4; i += 2) {
        b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        columns[2 * i] = (B32)_mm256_unpacklo_epi64(b[i], b[i + 2]);
        columns[2 * i + 1] = (B32)_mm256_unpackhi_epi64(b[i], b[i + 2]);
    }
#elif defined(KERNEL_NEON)
    uint32x4_t rows[2][4], turned[2][4];
    for (int half = 0; half < 2; half++) {
        for (int r = 0; r < 4; r++) rows[half][r] = load<uint32x4_t>(p[4 * half + r] + at);
        transpose_of_4(rows[half], turned[half]);
    }
    for (int c = 0; c < 4; c++) columns[c] = join(turned[0][c], turned[1][c]);
#else
    uint32_t dwords[4][8];
    for (int r = 0; r < 8; r++) {
        for (int c = 0; c < 4; c++) std::memcpy(&dwords[c][r], p[r] + at + 4 * c, 4);
    }
    for (int c = 0; c < 4; c++) columns[c] = load<B32>(dwords[c]);
#endif
}

// Dword c of row r to dword r of row c.
KERNEL_INLINE void transpose(B32 (&rows)[8]) {
#if defined(KERNEL_X86)
    __m256i a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_epi32((__m256i)rows[i], (__m256i)rows[i + 1]);
        a[i + 1] = _mm256_unpackhi_epi32((__m256i)rows[i], (__m256i)rows[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        b[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        rows[i] = (B32)_mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
        rows[i + 4] = (B32)_mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
    }
#elif defined(KERNEL_NEON)
    uint32x4_t tiles[2][2][4], turned[2][2][4];  // quarters of the whole: above and below, left and right
    for (int r = 0; r < 8; r++) {
        tiles[r / 4][0][r % 4] = (uint32x4_t)low_half(rows[r]);
        tiles[r / 4][1][r % 4] = (uint32x4_t)high_half(rows[r]);
    }
    for (int i = 0; i < 4; i++) transpose_of_4(tiles[i / 2][i % 2], turned[i / 2][i % 2]);
    for (int r = 0; r < 8; r++) rows[r] = join(turned[0][r / 4][r % 4], turned[1][r / 4][r % 4]);
#else
    uint32_t from[8][8], to[8][8];
    for (int r = 0; r < 8; r++) store(from[r], rows[r]);
    for (int r = 0; r < 8; r++) {
        for (int c = 0; c < 8; c++) to[c][r] = from[r][c];
    }
    for (int r = 0; r < 8; r++) rows[r] = load<B32>(to[r]);
#endif
}

}  // namespace
}  // namespace KERNEL_NS
