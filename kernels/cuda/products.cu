// Matrix products with a weight of one type, which TYPE names; the module is compiled once for each, and
// for two where products of two types (TYPE and OTHER) share a launch.
//
// Few columns are waited for by memory: a warp takes a row of the weight, its lanes take 32 weights each at a time, and
// activations are int8 in groups of 32 with a scale (as on the CPU), so that four products are one instruction (dp4a).
// A row is read once for up to eight columns.  Limit: bytes of the weight over the bandwidth of the memory, for a
// product of 4096 x 4096 in Q4_K 9.4 MB, 2.8 us at 3.35 TB/s.
//
// Many columns are limited by arithmetic: the weight is made f16 once and goes to the library's matrix product.

#include "blocks.cuh"
#include "common.cuh"

#ifndef TYPE
#define TYPE Q4_K
#define IS_PLAIN 0
#define OTHER TYPE
#endif

#define WARPS 4

// Two runs of 16 weights that lie in the same bytes of a block: run r begins at weight at[r].
struct Runs {
    int q[2][4], at[2];
    float scale[2], least[2];
};

// Any format: 32 weights in order are two runs.
template <int kType>
struct Wide {
    static const int weights = Format<kType>::weights, bytes = Format<kType>::bytes, per_block = weights / 32;
    __device__ static inline void load(const u8* block, int part, Runs& r) {
        Unit u;
        Format<kType>::load(block, part, u);
        for (int h = 0; h < 2; h++) {
            for (int w = 0; w < 4; w++) r.q[h][w] = u.q[4 * h + w];
            r.at[h] = 32 * part + 16 * h;
            r.scale[h] = u.scale[h];
            r.least[h] = u.least[h];
        }
    }
};

// 16 bytes hold 16 weights in their low nibbles and, 32 further on, 16 in their high ones: eight lanes read a block's
// 128 bytes in one wide access each, and its first 16 bytes once more.  The scales of both runs are neighbours, so both
// are unpacked as pairs of bytes.
template <>
struct Wide<Q4_K> {
    static const int weights = 256, bytes = 144, per_block = 8;
    __device__ static inline void load(const u8* block, int part, Runs& r) {
        const int4 head = ((const int4*)block)[0], qs = ((const int4*)block)[1 + part];
        const int words[4] = {qs.x, qs.y, qs.z, qs.w};
        const int pair = part / 2, shift = 16 * (pair & 1);
        const int first = head.y >> shift, second = head.z >> shift, third = head.w >> shift;
        const int is_low = pair < 2;
        const int scales = is_low ? first & 0x3f3f : (third & 0x0f0f) | (first & 0xc0c0) >> 2;
        const int leasts = is_low ? second & 0x3f3f : (third >> 4 & 0x0f0f) | (second & 0xc0c0) >> 2;
        const float d = half_to_float((u16)head.x), dmin = half_to_float((u16)(head.x >> 16));
#pragma unroll
        for (int h = 0; h < 2; h++) {
#pragma unroll
            for (int w = 0; w < 4; w++) r.q[h][w] = words[w] >> 4 * h & 0x0f0f0f0f;
            r.at[h] = 64 * pair + 32 * h + 16 * (part % 2);
            r.scale[h] = d * (float)(scales >> 8 * h & 255);
            r.least[h] = dmin * (float)(leasts >> 8 * h & 255);
        }
    }
};

// The same of Q6_K: 16 bytes of low bits serve two runs that are 64 weights apart, and so do 16 bytes of high bits.
template <>
struct Wide<Q6_K> {
    static const int weights = 256, bytes = 210, per_block = 8;
    __device__ static inline void load(const u8* block, int part, Runs& r) {
        const int half = part / 4, quarter = part % 4 / 2, begin = 16 * (part % 2);
        const u8 *ql = block + 64 * half + 32 * quarter + begin, *qh = block + 128 + 32 * half + begin;
        const float d = half_at(block + 208);
        for (int w = 0; w < 4; w++) {
            const int low = word_at(ql + 4 * w), high = word_at(qh + 4 * w);
            for (int h = 0; h < 2; h++) {
                const int top = high >> 2 * (quarter + 2 * h) & 0x03030303;
                r.q[h][w] = less((low >> 4 * h & 0x0f0f0f0f) | top << 4, 0x20202020);
            }
        }
        for (int h = 0; h < 2; h++) {
            r.at[h] = 128 * half + 32 * quarter + begin + 64 * h;
            r.scale[h] = d * (float)(i8)block[192 + r.at[h] / 16];
            r.least[h] = 0.0f;
        }
    }
};

// One of the products that share their activations; weights of these rows, and where what they give goes.
struct Part {
    const u8* weight;
    const float *bias, *residual;
    float* out;
    int n_out;
};

// What a block makes: the block-th rows of the weight, columns from `first` on, and what they are scaled by.
struct Tile {
    int block, first;
    float factor;
};

// A warp takes kRows rows of the weight at once: what is read of the activations serves all of them.
template <int kType, int kCols, int kRows>
__device__ inline void multiply(const Part& product, Tile tile, Acts acts, int n_in, int n) {
    typedef Wide<kType> W;
    const int lane = threadIdx.x % WARP, first = tile.first, n_out = product.n_out;
    const int row = (tile.block * WARPS + threadIdx.x / WARP) * kRows;
    const int n_col = n - first < kCols ? n - first : kCols;
    if (row >= n_out || n_col <= 0) return;
    const int n_block = n_in / W::weights;
    const u8* from[kRows];
#pragma unroll
    for (int r = 0; r < kRows; r++)  // beyond the last row the last one once more
        from[r] = product.weight + (i64)(row + r < n_out ? row + r : n_out - 1) * n_block * W::bytes;
    float sums[kCols][kRows] = {};
    const int n_part = n_block * W::per_block;
#pragma unroll 2
    for (int part = lane; part < n_part; part += WARP) {
        const int block = part / W::per_block;
        Runs runs[kRows];
#pragma unroll
        for (int r = 0; r < kRows; r++) W::load(from[r] + (i64)block * W::bytes, part % W::per_block, runs[r]);
#pragma unroll
        for (int c = 0; c < kCols; c++) {
            if (c >= n_col) break;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int at = (first + c) * n_in + block * W::weights + runs[0].at[h];
                const int4 x = ((const int4*)(acts.q + at))[0];
                const float sum = (float)acts.sums[at / 16], scale = acts.scale[at / GROUP];
#pragma unroll
                for (int r = 0; r < kRows; r++) {
                    const int* q = runs[r].q[h];
                    const int dot = __dp4a(q[0], x.x, __dp4a(q[1], x.y, __dp4a(q[2], x.z, __dp4a(q[3], x.w, 0))));
                    sums[c][r] += scale * (runs[r].scale[h] * (float)dot - runs[r].least[h] * sum);
                }
            }
        }
    }
#pragma unroll
    for (int c = 0; c < kCols; c++) {
        if (c >= n_col) break;
#pragma unroll
        for (int r = 0; r < kRows; r++) {
            const float total = warp_sum(sums[c][r]);
            if (lane == 0 && row + r < n_out)
                finish(total * tile.factor, (i64)(first + c) * n_out + row + r, row + r, product.bias, product.residual,
                       product.out);
        }
    }
}

template <int kType>
struct Plain;
template <>
struct Plain<F32> {
    static const int bytes = 4;
    __device__ static inline float at(const u8* row, int i) { return ((const float*)row)[i]; }
};
template <>
struct Plain<F16> {
    static const int bytes = 2;
    __device__ static inline float at(const u8* row, int i) { return half_to_float(((const u16*)row)[i]); }
};
template <>
struct Plain<BF16> {
    static const int bytes = 2;
    __device__ static inline float at(const u8* row, int i) { return bf16_of(((const u16*)row)[i]); }
};

// Plain weights are multiplied with activations as they are.  Eight neighbours at a time, where rows are whole eights.
template <int kType, int kCols>
__device__ inline void multiply_plain(const Part& product, Tile tile, const float* x, int n_in, int n) {
    typedef Plain<kType> P;
    const int lane = threadIdx.x % WARP, row = tile.block * WARPS + threadIdx.x / WARP, first = tile.first;
    const int n_out = product.n_out;
    const int n_col = n - first < kCols ? n - first : kCols;
    if (row >= n_out || n_col <= 0) return;
    const u8* from = product.weight + (i64)row * n_in * P::bytes;
    float sums[kCols] = {};
    const int n_whole = n_in % 8 ? 0 : n_in;
#pragma unroll 2
    for (int i = 8 * lane; i < n_whole; i += 8 * WARP) {
        int4 raw[P::bytes / 2];
#pragma unroll
        for (int part = 0; part < P::bytes / 2; part++) raw[part] = ((const int4*)(from + (i64)i * P::bytes))[part];
        float w[8];
#pragma unroll
        for (int k = 0; k < 8; k++) w[k] = P::at((const u8*)raw, k);
#pragma unroll
        for (int c = 0; c < kCols; c++) {
            if (c >= n_col) break;
            const int4* a = (const int4*)(x + (i64)(first + c) * n_in + i);
            const int4 low = a[0], high = a[1];
            const int bits[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
            for (int k = 0; k < 8; k++) sums[c] = fmaf(w[k], __int_as_float(bits[k]), sums[c]);
        }
    }
    for (int i = n_whole + lane; i < n_in; i += WARP) {
        const float w = P::at(from, i);
        for (int c = 0; c < kCols && c < n_col; c++) sums[c] = fmaf(w, x[(i64)(first + c) * n_in + i], sums[c]);
    }
#pragma unroll
    for (int c = 0; c < kCols; c++) {
        if (c >= n_col) break;
        const float total = warp_sum(sums[c]);
        if (lane == 0)
            finish(total * tile.factor, (i64)(first + c) * n_out + row, row, product.bias, product.residual,
                   product.out);
    }
}

template <int kType, int kIsPlain>
struct Product {
    template <int kCols, int kRows>
    __device__ static inline void run(const Part& product, Tile tile, Acts acts, const float*, int n_in, int n) {
        multiply<kType, kCols, kRows>(product, tile, acts, n_in, n);
    }
};
template <int kType>
struct Product<kType, 1> {
    template <int kCols, int kRows>
    __device__ static inline void run(const Part& product, Tile tile, Acts, const float* x, int n_in, int n) {
        multiply_plain<kType, kCols>(product, tile, x, n_in, n);
    }
};

// The first blocks have the first product, and so on; of `others`, bit i says that product i is of type OTHER.
template <int kCols, int kRows>
__device__ inline void multiply_parts(const Part& a, const Part& b, const Part& c, Acts acts, const float* x,
                                      int others, int n_in, int n) {
    const int per_block = WARPS * (IS_PLAIN ? 1 : kRows);
    const int after_a = (a.n_out + per_block - 1) / per_block,
              after_b = after_a + (b.n_out + per_block - 1) / per_block;
    const int block = blockIdx.x, which = (block >= after_a) + (block >= after_b);
    const Part product = which == 0 ? a : which == 1 ? b : c;
    const int before = which == 0 ? 0 : which == 1 ? after_a : after_b;
    const Tile tile = {block - before, (int)blockIdx.y * kCols, 1.0f};
    if (OTHER != TYPE && others >> which & 1) {
        Product<OTHER, IS_PLAIN>::template run<kCols, kRows>(product, tile, acts, x, n_in, n);
    } else {
        Product<TYPE, IS_PLAIN>::template run<kCols, kRows>(product, tile, acts, x, n_in, n);
    }
}

#define PART(i) const u8 *weight##i, const float *bias##i, const float *residual##i, float *out##i, int n_out##i
#define PART_OF(i) {weight##i, bias##i, residual##i, out##i, n_out##i}

// kRows: of a quantised weight; of a plain one a warp takes one.  Products that are not there have no rows.
#define MATVEC(kCols, kRows)                                                                                     \
    KERNEL matvec_##kCols(i8* q, float* scale, i16* sums, const float* x, PART(0), PART(1), PART(2), int others, \
                          int n_in, int n, const int* dims) {                                                    \
        const Part a = PART_OF(0), b = PART_OF(1), c = PART_OF(2);                                               \
        multiply_parts<kCols, kRows>(a, b, c, {q, scale, sums}, x, others, n_in, dim_of(n, dims));               \
    }

MATVEC(1, 2)
MATVEC(2, 2)
MATVEC(4, 2)
MATVEC(8, 1)

// Blocks for each slot (kernels/ops/experts.py): a column alone, multiplied with the weight of the slot's expert.
KERNEL expert_matvec(const u8* weight, i8* q, float* scale, i16* sums, const float* x, const int* ids,
                     const float* factors, float* out, int n_in, int n_out, i64 expert_bytes, int n_used, int is_shared,
                     int n, const int* dims) {
    const int slot = blockIdx.x;
    if (slot >= dim_of(n, dims) * n_used) return;
    const i64 row = is_shared ? slot / n_used : slot;
    const Tile tile = {(int)blockIdx.y, 0, factors != 0 ? factors[slot] : 1.0f};
    const Acts acts = {q + row * n_in, scale + row * (n_in / GROUP), sums + row * (n_in / 16)};
    const Part expert = {weight + ids[slot] * expert_bytes, 0, 0, out + (i64)slot * n_out, n_out};
    Product<TYPE, IS_PLAIN>::run<1, 2>(expert, tile, acts, x + row * n_in, n_in, 1);
}

// The weight as f16 [n_out, n_in]; a thread for each 32 weights, or for each weight of a plain type.
KERNEL dequantize(const u8* weight, u16* out, int n_in, int n_out) {
    const i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
#if IS_PLAIN
    if (i < (i64)n_in * n_out) out[i] = float_to_half(Plain<TYPE>::at(weight + i * Plain<TYPE>::bytes, 0));
#else
    const int n_unit = n_in / 32;
    if (i >= (i64)n_unit * n_out) return;
    Unit u;
    load_unit<TYPE>(weight + i / n_unit * (n_in / Format<TYPE>::weights) * Format<TYPE>::bytes, (int)(i % n_unit), u);
    int4* to = (int4*)(out + i * 32);
    for (int part = 0; part < 4; part++) {
        int words[4];
        for (int w = 0; w < 4; w++) {
            int word = 0;
            for (int k = 0; k < 2; k++) {
                const int at = 8 * part + 2 * w + k, level = (i8)(u.q[at / 4] >> 8 * (at % 4));
                const float value = u.scale[at / 16] * (float)level - u.least[at / 16];
                word |= (int)((u32)float_to_half(value) << 16 * k);
            }
            words[w] = word;
        }
        to[part] = make_int4(words[0], words[1], words[2], words[3]);
    }
#endif
}
