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

#define STEP 32                // cells taken at a time, four spans of eight
#define SPAN 8                 // neighbours in a page: 16 bytes of halves
#define LINES 16               // of a warp
#define KEY_STRIDE (STEP + 8)  // halves: the eight rows of a matrix begin in eight different sixteens of banks
#define LOG2E 1.4426950408889634f

// What is asked of the kernel, but for the sequence.
struct Asked {
    const float* q;
    float *out, *partials;
    int n_head, n_kv, head_dim, window, chunk;
    float scale, softcap, temperature;
    int temperature_length, piece_cells, n_piece;
};

// Neighbouring rows of one sequence.
struct Tile {
    int start, n_rows;
};

// Where a sequence's keys and values are.
struct Cells {
    u8 *k_state, *v_state;
    const int* table;
    int dtype, n_kv, kv, head_dim, page_size;
};

// Cells of a page from `in` on: where their head begins in either state, in bytes.
struct Span {
    i64 region;
    int in;
};

// A step's keys [head_dim, KEY_STRIDE], values [STEP, head_dim + 8], and scores of half the dimensions [16, n_threads].
struct Staged {
    u16 *keys, *values;
    int value_stride;
    float* scores;
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

// Of the step's span lane % 4; pages are not looked up for cells that nobody sees.
__device__ inline Span span_of(const Cells& cells, int begin, u32 seen) {
    const int part = threadIdx.x % 4, cell = begin + part * SPAN;
    const int page = seen >> part * SPAN & 255 ? cells.table[cell / cells.page_size] : 0;
    const i64 bytes = region_bytes(cells.dtype, cells.page_size, cells.head_dim);
    return {((i64)page * cells.n_kv + cells.kv) * bytes, cell % cells.page_size};
}

__device__ inline Span span_at(const Span& mine, int part) {
    return {__shfl_sync(FULL, mine.region, part), __shfl_sync(FULL, mine.in, part)};
}

// Keys of the spans that somebody sees, others are 0; cells that nobody sees in such a span may be anything.
__device__ inline void stage_keys_f16(const Cells& cells, const Span& mine, u32 seen, const Staged& to) {
    const int part = threadIdx.x % 4, is_seen = (seen >> part * SPAN & 255) != 0;
    const u16* from = (const u16*)(cells.k_state + mine.region) + mine.in;
    for (int d = threadIdx.x / 4; d < cells.head_dim; d += blockDim.x / 4) {
        const int4 eight = is_seen ? *(const int4*)(from + d * cells.page_size) : make_int4(0, 0, 0, 0);
        *(int4*)(to.keys + d * KEY_STRIDE + part * SPAN) = eight;
    }
}

// Four dimensions of four cells at a time, as their levels lie.
__device__ inline void stage_keys_q8_0(const Cells& cells, const Span& mine, u32 seen, const Staged& to) {
    const int four = threadIdx.x % 8 * 4, part = four / SPAN, is_seen = (seen >> part * SPAN & 255) != 0;
    const Span span = span_at(mine, part);
    const int in = span.in + four % SPAN;
    const Region r = {cells.k_state + span.region, cells.page_size, cells.head_dim};
#pragma unroll 1  // registers
    for (int d = threadIdx.x / 8 * 4; d < cells.head_dim; d += blockDim.x / 8 * 4) {
        int4 levels = make_int4(0, 0, 0, 0);
        int2 scales = make_int2(0, 0);
        if (is_seen) {
            levels = *(const int4*)(r.at + (d / 4 * r.page_size + in) * 4);
            scales = *(const int2*)(r.scales() + d / BLOCK * r.page_size + in);
        }
        const float s0 = half_to_float((u16)scales.x), s1 = half_to_float((u16)((u32)scales.x >> 16));
        const float s2 = half_to_float((u16)scales.y), s3 = half_to_float((u16)((u32)scales.y >> 16));
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 low = halves_of((i8)(levels.x >> 8 * i) * s0, (i8)(levels.y >> 8 * i) * s1);
            const u32 high = halves_of((i8)(levels.z >> 8 * i) * s2, (i8)(levels.w >> 8 * i) * s3);
            *(int2*)(to.keys + (d + i) * KEY_STRIDE + four) = make_int2((int)low, (int)high);
        }
    }
}

__device__ inline void stage_keys(const Cells& cells, const Span& mine, u32 seen, const Staged& to) {
    if (cells.dtype == F16) {
        stage_keys_f16(cells, mine, seen, to);
    } else {
        stage_keys_q8_0(cells, mine, seen, to);
    }
}

// Two halves, 0 in place of what is not finite; whether there was such a one is added to `is_odd`.
__device__ inline int finite_of(int pair, int& is_odd) {
    const int low = (pair & 0x7c00) == 0x7c00, high = (pair & 0x7c000000) == 0x7c000000;
    is_odd |= low | high;
    return pair & ((low ? 0 : 0xffff) | (high ? 0 : (int)0xffff0000));
}

__device__ inline int4 finite_of(int4 eight, int& is_odd) {
    return make_int4(finite_of(eight.x, is_odd), finite_of(eight.y, is_odd), finite_of(eight.z, is_odd),
                     finite_of(eight.w, is_odd));
}

// 16 levels with one scale as halves.
__device__ inline void halves_of(int4 levels, float scale, int4& first, int4& second) {
    const int words[4] = {levels.x, levels.y, levels.z, levels.w};
    u32 halves[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int pair = words[i / 2] >> i % 2 * 16;
        halves[i] = halves_of((i8)pair * scale, (i8)(pair >> 8) * scale);
    }
    first = make_int4((int)halves[0], (int)halves[1], (int)halves[2], (int)halves[3]);
    second = make_int4((int)halves[4], (int)halves[5], (int)halves[6], (int)halves[7]);
}

// Values of the cells that somebody sees, others are 0.  Where not all lines see all of them (is_edge) what is not
// finite is 0 as well, since 0 times it is NaN and would reach lines that do not see it; whether there was such a one.
__device__ inline int stage_values_f16(const Cells& cells, const Span& mine, u32 seen, int is_edge, const Staged& to) {
    const int per_cell = cells.head_dim / 8;
    int is_odd = 0;
    Span spans[STEP / SPAN];
#pragma unroll
    for (int part = 0; part < STEP / SPAN; part++) spans[part] = span_at(mine, part);
    for (int i = threadIdx.x; i < SPAN * per_cell; i += blockDim.x) {
        const int cell = i / per_cell, d = i % per_cell * 8;
#pragma unroll
        for (int part = 0; part < STEP / SPAN; part++) {
            int4 eight = make_int4(0, 0, 0, 0);
            if (seen >> (part * SPAN + cell) & 1) {
                const u16* from = (const u16*)(cells.v_state + spans[part].region);
                eight = *(const int4*)(from + (spans[part].in + cell) * cells.head_dim + d);
            }
            if (is_edge) eight = finite_of(eight, is_odd);
            *(int4*)(to.values + (part * SPAN + cell) * to.value_stride + d) = eight;
        }
    }
    return is_odd;
}

__device__ inline int stage_values_q8_0(const Cells& cells, const Span& mine, u32 seen, int is_edge, const Staged& to) {
    const int per_cell = cells.head_dim / 16;
    int is_odd = 0;
#pragma unroll 1  // registers
    for (int part = 0; part < STEP / SPAN; part++) {
        const Span span = span_at(mine, part);
        const Region r = {cells.v_state + span.region, cells.page_size, cells.head_dim};
#pragma unroll 1
        for (int i = threadIdx.x; i < SPAN * per_cell; i += blockDim.x) {
            const int cell = i / per_cell, d = i % per_cell * 16, in = span.in + cell;
            int4 first = make_int4(0, 0, 0, 0), second = first;
            if (seen >> (part * SPAN + cell) & 1) {
                const float scale = half_to_float(r.scales()[d / BLOCK * r.page_size + in]);
                halves_of(*(const int4*)(r.at + in * r.head_dim + d), scale, first, second);
            }
            if (is_edge) first = finite_of(first, is_odd), second = finite_of(second, is_odd);
            int4* at = (int4*)(to.values + (part * SPAN + cell) * to.value_stride + d);
            at[0] = first;
            at[1] = second;
        }
    }
    return is_odd;
}

__device__ inline int stage_values(const Cells& cells, const Span& mine, u32 seen, int is_edge, const Staged& to) {
    return cells.dtype == F16 ? stage_values_f16(cells, mine, seen, is_edge, to)
                              : stage_values_q8_0(cells, mine, seen, is_edge, to);
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

// Scores of one of a thread's two lines become weights; what the line had before is to be shrunk by the result.
__device__ inline float weigh(float (&scores)[4][4], int half, float unit, float softcap, u32 seen, float& most,
                              float& sum) {
    const int t = threadIdx.x % 4;
    float highest = most;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float& x = scores[i / 2][2 * half + i % 2];
        x = softcap > 0.0f ? softcap * LOG2E * tanhf(x * unit / softcap) : x * unit * LOG2E;
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
                shrink[half] =
                    weigh(scores, half, unit[half], asked.softcap, seen_by[half], lines.most[half], lines.sum[half]);
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
    const Staged staged = {keys, values, value_stride, (float*)(values + STEP * value_stride)};
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
        int n_piece, int tile_rows, int n_slot, int n, int n_pages, const int* dims) {                            \
        const Asked asked = {q,           out,    partials, n_head,  n_kv,        head_dim,                       \
                             window,      chunk,  scale,    softcap, temperature, temperature_length,             \
                             piece_cells, n_piece};                                                               \
        const Cells cells = {k_state, v_state, 0, dtype, n_kv, (int)blockIdx.y, head_dim, page_size};             \
        attend<kMost / kParts, kParts>(asked, cells, tables, rows, n_visible, tile_rows, n_slot, dim_of(n, dims), \
                                       dim_of(n_pages, dims));                                                    \
    }

TILED(64, 1, 3)
TILED(128, 1, 3)
TILED(256, 2, 2)
