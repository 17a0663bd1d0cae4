// A step's keys and values, brought into shared memory as f16 for all lines of a tile (tiled_attention.cu).
#pragma once

#include "cells.cuh"
#include "common.cuh"

#define STEP 32                // cells taken at a time, four spans of eight
#define SPAN 8                 // neighbours in a page: 16 bytes of halves
#define KEY_STRIDE (STEP + 8)  // halves: the eight rows of a matrix begin in eight different sixteens of banks

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

// A step's keys [head_dim, KEY_STRIDE], values [STEP, head_dim + 8], and scores of half the dimensions [16, n_threads];
// for all steps the biases of the group's heads, as exponents of 2 [n_group, n_biases].
struct Staged {
    u16 *keys, *values;
    int value_stride;
    float *scores, *biases;
};

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
