// Where keys and values lie, and which of them a row sees (kernels/ops/attention.py has the layout).
#pragma once

#include "common.cuh"

#define BLOCK 32  // dimensions that share a scale in q8_0

// One key/value head in one page.
struct Region {
    u8* at;
    int page_size, head_dim;

    __device__ inline u16* scales() const { return (u16*)(at + page_size * head_dim); }
};

__device__ inline i64 region_bytes(int dtype, int page_size, int head_dim) {
    const i64 n = (i64)page_size * head_dim;
    return dtype == F32 ? 4 * n : dtype == F16 ? 2 * n : n / BLOCK * (BLOCK + 2);
}

__device__ inline Region region_of(u8* state, int dtype, int page, int n_kv, int kv, int page_size, int head_dim) {
    return {state + ((i64)page * n_kv + kv) * region_bytes(dtype, page_size, head_dim), page_size, head_dim};
}

// Dimension d of the cell at `in` of a page, as it is kept.
template <int kIsKeys>
__device__ inline int place(const Region& r, int in, int d) {
    return kIsKeys ? d * r.page_size + in : in * r.head_dim + d;
}

template <int kIsKeys>
__device__ inline int level_place(const Region& r, int in, int d) {
    return kIsKeys ? (d / 4 * r.page_size + in) * 4 + d % 4 : in * r.head_dim + d;
}

template <int kIsKeys>
__device__ inline float read(const Region& r, int dtype, int in, int d) {
    if (dtype == F32) return ((const float*)r.at)[place<kIsKeys>(r, in, d)];
    if (dtype == F16) return half_to_float(((const u16*)r.at)[place<kIsKeys>(r, in, d)]);
    return half_to_float(r.scales()[d / BLOCK * r.page_size + in]) *
           (float)((const i8*)r.at)[level_place<kIsKeys>(r, in, d)];
}

// The first cell that a row sees whose own is the one before `stop`: it looks back a window, or into its chunk.
__device__ inline int first_seen(int stop, int window, int chunk) {
    const int by_window = window > 0 && stop - window - 1 > 0 ? stop - window - 1 : 0;
    const int by_chunk = chunk > 0 ? (stop - 1) / chunk * chunk : 0;
    return by_window > by_chunk ? by_window : by_chunk;
}

// Head h adds table[distance_of(..), h] to a row's score of a cell; see kernels/ops/attention.py.
struct Bias {
    const float* table;    // [2 * reach + 1, n_head], or 0
    const int* positions;  // [n]
    int reach;
};

// Of a cell from a position, as a row of such a table.
__device__ inline int distance_of(int cell, int position, int reach) {
    const int distance = cell - position;
    return (distance < -reach ? -reach : distance > reach ? reach : distance) + reach;
}

// What the scale of a row's queries is multiplied by; see kernels/ops/attention.py.
__device__ inline float sharpening(int stop, float temperature, int temperature_length) {
    return temperature_length > 0 ? 1.0f + temperature * logf(1.0f + (float)(stop / temperature_length)) : 1.0f;
}
