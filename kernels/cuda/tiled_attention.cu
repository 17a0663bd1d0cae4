// Attention of many rows: neighbours share what they read, and tensor cores multiply (kernels/ops/attention.py has the
// contract).
//
// A line is one query head of one row.  All lines of neighbouring rows of a sequence and of a key/value head's group
// read the same keys and values: up to 64 of them are a tile, which a block takes.  It walks the cells that any of its
// rows sees, 32 at a time:
//
//   all threads    bring keys and values into shared memory as f16, once for the whole tile
//   each warp      multiplies its 16 lines with the keys, and has their scores in registers;
//                  makes them weights to the base of the largest score so far (arXiv:2205.14135, online softmax);
//                  multiplies the weights with the values, in the registers in which they are (arXiv:2307.08691).
//
// Heads of over 128 dimensions do not fit a warp's registers: two warps have the same lines and half of the dimensions
// each, and add their scores up in shared memory.
//
// Both are factors as `load_transposed` takes them: pages have keys [dimension, cell] and values [cell, dimension].
//
// Queries become f16 scaled by a power of two for each line, weights (at most 1) become f16, sums are f32: queries and
// weights are rounded as a cache of f16 rounds keys and values.  A cache of f32 is asked for where that is too little,
// so it stays with `attention` (cache.cu).  Each line's sums have the cells' order whatever shares its tile.

#include "cells.cuh"
#include "common.cuh"
#include "staging.cuh"

#define LINES 16  // of a warp
#define LOG2E 1.4426950408889634f

#ifndef IS_BIASED  // sources.py; a module of its own, whose registers the others do not have to spare
#define IS_BIASED 0
#endif

// What is asked of the kernel, but for the sequence.
struct Asked {
    const float* q;
    float *out, *partials;
    int n_head, n_kv, head_dim, window, chunk;
    float scale, softcap, temperature;
    int temperature_length, piece_cells, n_piece;
    Bias bias;
};

// Neighbouring rows of one sequence.
struct Tile {
    int start, n_rows;
};

// A warp's lines, and its dimensions of them: n_dims from `from` on.
struct Share {
    int first_line, from, n_dims;
};

// What is known of a thread's two lines, 8 apart: largest score in log 2, this thread's part of the weights' sum, and
// weighted values [kDims / 8] as `mma` has c.
template <int kDims>
struct Lines {
    float most[2], sum[2], values[kDims / 8][4];
};

// The nth run of rows of one sequence among [begin, end), at most 32; of no rows where there are fewer.
__device__ inline Tile tile_of(const int* rows, int begin, int end, int nth) {
    const int lane = threadIdx.x % WARP, row = begin + lane;
    u32 firsts = __ballot_sync(FULL, row < end && (lane == 0 || rows[row] != rows[row - 1]));
    for (int i = 0; i < nth; i++) firsts &= firsts - 1;
    if (firsts == 0) return {begin, 0};
    const int start = __ffs((int)firsts) - 1;
    firsts &= firsts - 1;
    return {begin + start, (firsts ? __ffs((int)firsts) - 1 : end - begin) - start};
}

// Bit i: whether begin + i is in [first, stop).
__device__ inline u32 bits_of(int first, int stop, int begin) {
    const int from = first > begin ? first - begin : 0, to = stop - begin < STEP ? stop - begin : STEP;
    return from < to ? FULL >> (STEP - (to - from)) << from : 0;
}

__device__ inline u32 warp_or(u32 bits) {
    for (int step = WARP / 2; step > 0; step /= 2) bits |= __shfl_xor_sync(FULL, bits, step);
    return bits;
}

__device__ inline int warp_least(int x) {
    for (int step = WARP / 2; step > 0; step /= 2) {
        const int other = __shfl_xor_sync(FULL, x, step);
        x = other < x ? other : x;
    }
    return x;
}

// A line of queries (absent: 0) as words 0 and 2, or 1 and 3, of `mma`'s a, times a power of two that brings the
// largest near 1; returns what undoes that.
template <int kDims>
__device__ inline float load_line(const float* line, int head_dim, const Share& share, int half,
                                  u32 (&query)[kDims / 16][4]) {
    const int t = threadIdx.x % 4;
    float largest = 0.0f;
    for (int d = 2 * t; line && d < head_dim; d += 8) {
        const float2 two = *(const float2*)(line + d);
        largest = fmaxf(largest, fmaxf(fabsf(two.x), fabsf(two.y)));
    }
    for (int step = 1; step < 4; step *= 2) largest = fmaxf(largest, __shfl_xor_sync(FULL, largest, step));
    int exponent = __float_as_int(largest) >> 23;
    exponent = exponent < 1 ? 1 : exponent > 253 ? 253 : exponent;  // of which both powers are normal
    const float up = __int_as_float((254 - exponent) << 23);
#pragma unroll
    for (int k = 0; k < kDims / 16; k++) {
        if (k * 16 >= share.n_dims) break;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int d = share.from + k * 16 + i * 8 + 2 * t;
            const float2 two = line ? *(const float2*)(line + d) : make_float2(0.0f, 0.0f);
            query[k][2 * i + half] = halves_of(two.x * up, two.y * up);
        }
    }
    return __int_as_float(exponent << 23);
}

// scores [16 lines, STEP] as four of `mma`'s c, of the warp's dimensions.
template <int kDims>
__device__ inline void score(const u32 (&query)[kDims / 16][4], const Staged& staged, const Share& share,
                             float (&scores)[4][4]) {
    const int lane = threadIdx.x % WARP;
    const u16* keys = staged.keys + (share.from + lane % 16) * KEY_STRIDE + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < kDims / 16; k++) {
        if (k * 16 >= share.n_dims) break;
#pragma unroll
        for (int j = 0; j < 2; j++) {
            u32 factor[4];
            load_transposed(factor, keys + k * 16 * KEY_STRIDE + j * 16);
            mma(scores[2 * j], query[k], factor[0], factor[1]);
            mma(scores[2 * j + 1], query[k], factor[2], factor[3]);
        }
    }
}

// Adds what the neighbouring warp, which has the lines' other dimensions, made of the scores.
__device__ inline void add_up(const Staged& staged, float (&scores)[4][4]) {
#pragma unroll
    for (int i = 0; i < 16; i++) staged.scores[i * blockDim.x + threadIdx.x] = scores[i / 4][i % 4];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 16; i++) scores[i / 4][i % 4] += staged.scores[i * blockDim.x + (threadIdx.x ^ WARP)];
}

// What a line adds to its scores: where its head's biases begin, and the row's position.
struct Added {
    int begin, position;
};

// Of a head: by distance from -reach - STEP on, so that a step's lie side by side wherever it is.
__device__ inline int n_biases(const Bias& bias) { return 2 * (bias.reach + STEP); }

// Where a step's begin.
__device__ inline int bias_at(const Bias& bias, int begin, int position) {
    const int at = begin - position + bias.reach + STEP, last = 2 * bias.reach + STEP;
    return at < 0 ? 0 : at > last ? last : at;
}

// Biases as `Staged` has them; those who read them come to a barrier first.
__device__ inline void stage_biases(const Asked& asked, int kv, const Staged& to) {
    const int n_group = asked.n_head / asked.n_kv, n = n_biases(asked.bias), reach = asked.bias.reach;
    for (int i = threadIdx.x; i < n_group * n; i += blockDim.x) {
        const int member = i % n_group, at = i / n_group, distance = distance_of(at - STEP, reach, reach);
        to.biases[member * n + at] = asked.bias.table[(i64)distance * asked.n_head + kv * n_group + member] * LOG2E;
    }
}

// Scores of one of a thread's two lines become weights; what the line had before is to be shrunk by the result.  The
// step's cells are those from `begin` on.
__device__ inline float weigh(float (&scores)[4][4], int half, float unit, const Asked& asked, const Staged& staged,
                              const Added& added, int begin, u32 seen, float& most, float& sum) {
    const int t = threadIdx.x % 4;
    const float* biases = 0;
    if (IS_BIASED) biases = staged.biases + added.begin + bias_at(asked.bias, begin, added.position) + 2 * t;
    float highest = most;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float& x = scores[i / 2][2 * half + i % 2];
        if (IS_BIASED) {  // then no cap
            x = x * unit * LOG2E + biases[i / 2 * 8 + i % 2];
        } else {
            x = asked.softcap > 0.0f ? asked.softcap * LOG2E * tanhf(x * unit / asked.softcap) : x * unit * LOG2E;
        }
        if (!(seen >> (i / 2 * 8 + 2 * t + i % 2) & 1)) x = -INF;
        highest = fmaxf(highest, x);  // passes over NaN, which the sum and the values get from the weight
    }
    for (int step = 1; step < 4; step *= 2) highest = fmaxf(highest, __shfl_xor_sync(FULL, highest, step));
    const float base = highest == -INF ? 0.0f : highest;  // nothing seen as yet
    const float shrink = exp2f(most - base);
    most = highest;
    sum *= shrink;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float& x = scores[i / 2][2 * half + i % 2];
        x = exp2f(x - base);
        sum += x;
    }
    return shrink;
}

// Adds weights [16 lines, STEP] times the staged values.
template <int kDims>
__device__ inline void mix(const float (&weights)[4][4], const Staged& staged, const Share& share,
                           float (&values)[kDims / 8][4]) {
    const int lane = threadIdx.x % WARP;
    const u16* from = staged.values + lane % 16 * staged.value_stride + share.from + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < 2; k++) {
        const float (&left)[4] = weights[2 * k], (&right)[4] = weights[2 * k + 1];
        const u32 factor[4] = {halves_of(left[0], left[1]), halves_of(left[2], left[3]), halves_of(right[0], right[1]),
                               halves_of(right[2], right[3])};
#pragma unroll
        for (int j = 0; j < kDims / 16; j++) {
            if (j * 16 >= share.n_dims) break;
            u32 value[4];
            load_transposed(value, from + k * 16 * staged.value_stride + j * 16);
            mma(values[2 * j], factor, value[0], value[1]);
            mma(values[2 * j + 1], factor, value[2], value[3]);
        }
    }
}

// What `stage_values` left out, for the lines that see it: such a value is as large with any weight.
template <int kDims>
__device__ inline void mix_odd(const Cells& cells, const Span& mine, const Share& share, const u32 (&seen)[2],
                               float (&values)[kDims / 8][4]) {
    const int t = threadIdx.x % 4;
    for (int cell = 0; cell < STEP; cell++) {
        const Span span = span_at(mine, cell / SPAN);
        const Region r = {cells.v_state + span.region, cells.page_size, cells.head_dim};
        if (!((seen[0] | seen[1]) >> cell & 1)) continue;
#pragma unroll
        for (int i = 0; i < kDims / 4; i++) {
            const int j = i / 2, d = share.from + j * 8 + 2 * t + i % 2;
            if (j * 8 >= share.n_dims) break;
            const float x = half_to_float(float_to_half(read<0>(r, cells.dtype, span.in + cell % SPAN, d)));
            if (x - x == 0.0f) continue;
            if (seen[0] >> cell & 1) values[j][i % 2] += x;
            if (seen[1] >> cell & 1) values[j][2 + i % 2] += x;
        }
    }
}

// One of a thread's two lines: the result, or a piece's part of it as `merge` (cache.cu) takes it.
template <int kDims>
__device__ inline void store_line(const Asked& asked, const Share& share, const Lines<kDims>& lines, int half, int head,
                                  int piece) {
    const int t = threadIdx.x % 4, width = asked.head_dim + 2;
    float sum = lines.sum[half];
    for (int step = 1; step < 4; step *= 2) sum += __shfl_xor_sync(FULL, sum, step);
    if (head < 0) return;
    const int is_all = asked.n_piece == 1;
    float* to =
        is_all ? asked.out + (i64)head * asked.head_dim : asked.partials + ((i64)head * asked.n_piece + piece) * width;
    const float factor = is_all ? 1.0f / sum : 1.0f;
#pragma unroll
    for (int j = 0; j < kDims / 8; j++) {
        if (j * 8 >= share.n_dims) break;
        const float2 two = {lines.values[j][2 * half] * factor, lines.values[j][2 * half + 1] * factor};
        *(float2*)(to + share.from + j * 8 + 2 * t) = two;
    }
    if (!is_all && share.from == 0 && t == 0) {
        *(float2*)(to + asked.head_dim) = make_float2(lines.most[half] / LOG2E, sum);
    }
}

// A block's tile, in its piece of the cells.
template <int kDims, int kParts>
__device__ inline void attend_tile(const Asked& asked, const Cells& cells, const int* n_visible, const Tile& tile,
                                   int piece, const Staged& staged) {
    const int lane = threadIdx.x % WARP, n_group = asked.n_head / asked.n_kv, head_dim = asked.head_dim;
    // what the row of this lane sees of the piece
    int first = 0, stop = 0;
    if (lane < tile.n_rows) {
        const int n_seen = n_visible[tile.start + lane], begin = piece * asked.piece_cells;
        const int from = first_seen(n_seen, asked.window, asked.chunk), end = begin + asked.piece_cells;
        first = from > begin ? from : begin;
        stop = n_seen < end ? n_seen : end;
        if (stop <= first) first = stop = 0;
    }
    const int least = warp_least(stop > 0 ? first : 0x7fffffff), most = -warp_least(-stop);
    if (most == 0) return;

    const int warp = threadIdx.x / WARP, from = warp % kParts * kDims;
    const Share share = {warp / kParts * LINES, from, head_dim - from < kDims ? head_dim - from : kDims};
    const int n_lines = tile.n_rows * n_group;
    int row[2], head[2];
    float unit[2];
    Added added[2] = {};
    u32 query[kDims / 16][4];
    Lines<kDims> lines = {{-INF, -INF}, {}, {}};
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int line = share.first_line + lane / 4 + 8 * half;
        row[half] = line / n_group;
        const int is_there = __shfl_sync(FULL, stop, row[half]) > 0 && line < n_lines;
        head[half] = is_there ? (tile.start + row[half]) * asked.n_head + cells.kv * n_group + line % n_group : -1;
        const float* at = is_there ? asked.q + (i64)head[half] * head_dim : 0;
        const int n_seen = is_there ? n_visible[tile.start + row[half]] : 1;
        const float scale = asked.scale * sharpening(n_seen, asked.temperature, asked.temperature_length);
        unit[half] = load_line<kDims>(at, head_dim, share, half, query) * scale;
        if (IS_BIASED) {
            added[half].begin = line % n_group * n_biases(asked.bias);
            added[half].position = is_there ? asked.bias.positions[tile.start + row[half]] : 0;
        }
    }
    for (int begin = least / STEP * STEP; begin < most; begin += STEP) {
        const u32 seen = bits_of(first, stop, begin), any = warp_or(seen);
        const int is_edge = !__all_sync(FULL, seen == FULL || lane >= tile.n_rows);
        if (any == 0) continue;
        const Span mine = span_of(cells, begin, any);
        stage_keys(cells, mine, any, staged);
        const int is_odd = __syncthreads_or(stage_values(cells, mine, any, is_edge, staged));
        if (kParts > 1 || share.first_line < n_lines) {  // of more parts all come to the barrier
            const u32 seen_by[2] = {__shfl_sync(FULL, seen, row[0]), __shfl_sync(FULL, seen, row[1])};
            float scores[4][4] = {}, shrink[2];
            score<kDims>(query, staged, share, scores);
            if (kParts > 1) add_up(staged, scores);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                shrink[half] = weigh(scores, half, unit[half], asked, staged, added[half], begin, seen_by[half],
                                     lines.most[half], lines.sum[half]);
            }
            if (__any_sync(FULL, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
#pragma unroll
                for (int i = 0; i < kDims / 2; i++) lines.values[i / 4][i % 4] *= shrink[i % 4 / 2];
            }
            mix<kDims>(scores, staged, share, lines.values);
            if (is_odd) mix_odd<kDims>(cells, span_of(cells, begin, any), share, seen_by, lines.values);
        }
        __syncthreads();
    }
#pragma unroll
    for (int half = 0; half < 2; half++) store_line(asked, share, lines, half, head[half], piece);
}

// A block for each (piece of the cells, key/value head, slot and group of `tile_rows` rows).  The rows of a group are
// cut where the sequence changes; the group's nth tile is that of slot n % n_slot.  The last rows of a prompt see most,
// so they begin.
template <int kDims, int kParts>
__device__ inline void attend(const Asked& asked, Cells cells, const int* tables, const int* rows, const int* n_visible,
                              int tile_rows, int n_slot, int n, int n_pages) {
    SHARED_BYTES(shared);
    const int value_stride = asked.head_dim + 8;
    u16 *keys = (u16*)shared, *values = keys + asked.head_dim * KEY_STRIDE;
    float* scores = (float*)(values + STEP * value_stride);
    const Staged staged = {keys, values, value_stride, scores, scores + (kParts > 1 ? LINES * blockDim.x : 0)};
    if (IS_BIASED) stage_biases(asked, cells.kv, staged);
    const int n_groups = gridDim.z / n_slot, group = n_groups - 1 - blockIdx.z % n_groups;
    const int begin = group * tile_rows, end = begin + tile_rows < n ? begin + tile_rows : n;
    for (int nth = blockIdx.z / n_groups;; nth += n_slot) {
        const Tile tile = tile_of(rows, begin, end, nth);
        if (tile.n_rows == 0) return;
        cells.table = tables + (i64)rows[tile.start] * n_pages;
        attend_tile<kDims, kParts>(asked, cells, n_visible, tile, blockIdx.x, staged);
    }
}

// For heads of up to kMost dimensions, a multiple of 16; kBlocks: that a multiprocessor of 65,536 registers then has.
#define TILED(kMost, kParts, kBlocks)                                                                             \
    KERNEL __launch_bounds__(128, kBlocks) tiled_attention_##kMost(                                               \
        const float* q, u8* k_state, u8* v_state, const int* tables, const int* rows, const int* n_visible,       \
        float* out, float* partials, int dtype, int n_head, int n_kv, int head_dim, int page_size, int window,    \
        int chunk, float scale, float softcap, float temperature, int temperature_length, int piece_cells,        \
        int n_piece, const float* bias, const int* positions, int reach, int tile_rows, int n_slot, int n,        \
        int n_pages, const int* dims) {                                                                           \
        const Asked asked = {q,           out,         partials,                                                  \
                             n_head,      n_kv,        head_dim,                                                  \
                             window,      chunk,       scale,                                                     \
                             softcap,     temperature, temperature_length,                                        \
                             piece_cells, n_piece,     {bias, positions, reach}};                                 \
        const Cells cells = {k_state, v_state, 0, dtype, n_kv, (int)blockIdx.y, head_dim, page_size};             \
        attend<kMost / kParts, kParts>(asked, cells, tables, rows, n_visible, tile_rows, n_slot, dim_of(n, dims), \
                                       dim_of(n_pages, dims));                                                    \
    }

TILED(64, 1, 3)
TILED(128, 1, 3)
TILED(256, 2, 2)
