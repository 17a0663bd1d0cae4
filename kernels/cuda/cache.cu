// Keys and values: written into pages, and attended to (kernels/ops/attention.py has the layout).

#include "cells.cuh"
#include "common.cuh"

#define MAX_LANES 8  // dimensions of a head that a lane sums up: heads of up to 256

// A warp writes `value`, dimension d of a cell, where is_there; q8_0 has 32 neighbours in the 32 lanes.
template <int kIsKeys>
__device__ inline void write(const Region& r, int dtype, int in, int d, float value, int is_there) {
    if (dtype == F32) {
        if (is_there) ((float*)r.at)[place<kIsKeys>(r, in, d)] = value;
    } else if (dtype == F16) {
        if (is_there) ((u16*)r.at)[place<kIsKeys>(r, in, d)] = float_to_half(value);
    } else {
        const float scale = warp_max(fabsf(value)) / 127.0f;
        const int is_nan = __any_sync(FULL, value != value);
        ((i8*)r.at)[level_place<kIsKeys>(r, in, d)] = (i8)(scale > 0.0f ? __float2int_rn(value / scale) : 0);
        if (d % BLOCK == 0) r.scales()[d / BLOCK * r.page_size + in] = is_nan ? 0x7e00 : float_to_half(scale);
    }
}

// Dimension d of a head at a position.
__device__ inline float turned(const float* head, int d, int position, const float* inv_freq, float magnitude,
                               int n_pair, int is_neox) {
    const float value = head[d];
    if (d >= 2 * n_pair) return value;
    const int pair = is_neox ? d % n_pair : d / 2, is_second = is_neox ? d >= n_pair : d % 2;
    const float other = head[is_neox ? (is_second ? d - n_pair : d + n_pair) : d ^ 1];
    float cosine, sine;
    turn(position, inv_freq[pair], &cosine, &sine);
    return (is_second ? other * sine + value * cosine : value * cosine - other * sine) * magnitude;
}

// A warp for each key/value head of each row: its lanes take neighbouring dimensions, 32 at a time.  Others turn the
// n_head queries of the row, where there are any (0: `rope` does).
KERNEL store_kv(const float* q, float* q_out, const float* k, const float* v, const int* positions, const int* cells,
                u8* k_state, u8* v_state, const float* inv_freq, float magnitude, int n_pair, int is_neox, int dtype,
                int n_head, int n_kv, int head_dim, int page_size, int n, const int* dims) {
    const int lane = threadIdx.x % WARP;
    const i64 unit = (i64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    const int row = (int)(unit / (n_kv + n_head)), kv = (int)(unit % (n_kv + n_head));
    if (row >= dim_of(n, dims)) return;
    if (kv >= n_kv) {
        const i64 begin = ((i64)row * n_head + kv - n_kv) * head_dim;
        for (int d = lane; d < head_dim; d += WARP)
            q_out[begin + d] = turned(q + begin, d, positions[row], inv_freq, magnitude, n_pair, is_neox);
        return;
    }
    const int page = cells[row] / page_size, in = cells[row] % page_size;
    const Region keys = region_of(k_state, dtype, page, n_kv, kv, page_size, head_dim);
    const Region values = region_of(v_state, dtype, page, n_kv, kv, page_size, head_dim);
    const i64 head = (i64)row * n_kv + kv;
    const float *from_k = k + head * head_dim, *from_v = v + head * head_dim;
    for (int begin = 0; begin < head_dim; begin += WARP) {
        const int d = begin + lane, is_there = d < head_dim;
        const float key = is_there ? turned(from_k, d, positions[row], inv_freq, magnitude, n_pair, is_neox) : 0.0f;
        write<1>(keys, dtype, in, d, key, is_there);
        write<0>(values, dtype, in, d, is_there ? from_v[d] : 0.0f, is_there);
    }
}

// What is known of a row's query at one head after some cells (arXiv:2205.14135): the largest score, the weights'
// sum and the weighted values, both to the base of that score.
struct Partial {
    float most, sum;
};

// Adds 32 cells from `begin` on to a warp's partial result; a lane scores a cell, then sums up dimensions of all.
__device__ inline void attend(const float* q, u8* k_state, u8* v_state, const int* table, int dtype, int n_kv, int kv,
                              int head_dim, int page_size, float scale, float softcap, const Bias& bias, int row,
                              int head, int n_head, int begin, int start, int stop, Partial& p, float* values) {
    const int lane = threadIdx.x % WARP, cell = begin + lane, is_seen = cell >= start && cell < stop;
    float score = -INF;
    if (is_seen) {
        const Region keys = region_of(k_state, dtype, table[cell / page_size], n_kv, kv, page_size, head_dim);
        const int in = cell % page_size;
        float dot = 0.0f;
        if (dtype == F16) {
            const u16* key = (const u16*)keys.at + in;
#pragma unroll 16  // so many loads are on their way at once
            for (int d = 0; d < head_dim; d++) dot = fmaf(q[d], half_to_float(key[d * page_size]), dot);
        } else {
            for (int d = 0; d < head_dim; d++) dot = fmaf(q[d], read<1>(keys, dtype, in, d), dot);
        }
        score = dot * scale;
        if (softcap > 0.0f) score = softcap * tanhf(score / softcap);
        if (bias.table != 0) {
            const int distance = distance_of(cell, bias.positions[row], bias.reach);
            score += bias.table[(i64)distance * n_head + head];
        }
    }
    // a NaN is the largest: it must reach the result
    float most = score;
    for (int step = WARP / 2; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(FULL, most, step);
        most = most != most || most > other ? most : other;
    }
    most = p.most != p.most || p.most > most ? p.most : most;
    const float shrink = p.most == most ? 1.0f : expf(p.most - most);
    const float weight = is_seen ? expf(score - most) : 0.0f;
    p.most = most;
    p.sum = p.sum * shrink + warp_sum(weight);
    for (int j = 0; j < MAX_LANES; j++) values[j] *= shrink;
    if (dtype == F16 && page_size % WARP == 0 && head_dim % WARP == 0) {
        // all 32 cells lie in one page, their values one after the other
        const Region r = region_of(v_state, dtype, table[begin / page_size], n_kv, kv, page_size, head_dim);
        const u16* value = (const u16*)r.at + begin % page_size * head_dim + lane;
        const int from = start > begin ? start - begin : 0, to = stop - begin < WARP ? stop - begin : WARP;
#pragma unroll 8
        for (int i = from; i < to; i++) {
            const float part = __shfl_sync(FULL, weight, i);
#pragma unroll
            for (int j = 0; j < MAX_LANES; j++) {
                if (j * WARP >= head_dim) break;
                values[j] = fmaf(part, half_to_float(value[i * head_dim + j * WARP]), values[j]);
            }
        }
        return;
    }
    for (int i = 0; i < WARP; i++) {
        const int other = begin + i;
        const float part = __shfl_sync(FULL, weight, i);
        if (other < start || other >= stop) continue;
        const Region r = region_of(v_state, dtype, table[other / page_size], n_kv, kv, page_size, head_dim);
        const int in = other % page_size;
#pragma unroll
        for (int j = 0; j < MAX_LANES; j++) {
            const int d = j * WARP + lane;
            if (j * WARP >= head_dim) break;
            if (d < head_dim) values[j] = fmaf(part, read<0>(r, dtype, in, d), values[j]);
        }
    }
}

// Pieces of a row's cells that are seen.
struct Seen {
    int from, to;
};

__device__ inline Seen seen_of(int first, int stop, int piece_cells) {
    return {first / piece_cells, (stop + piece_cells - 1) / piece_cells};
}

// Dimension d of a head's result: its pieces' partial results [n_piece, head_dim + 2], in order.  They may be of this
// very launch, of other blocks: no cache of this processor's may answer for them.
__device__ inline float merged(const volatile float* head, int head_dim, Seen seen, int d) {
    const int step = head_dim + 2;
    float most = -INF, sum = 0.0f, value = 0.0f;
#pragma unroll 8  // as in attend
    for (int piece = seen.from; piece < seen.to; piece++) {
        const float other = head[piece * step + head_dim];
        most = most != most || most > other ? most : other;
    }
#pragma unroll 8  // as in attend
    for (int piece = seen.from; piece < seen.to; piece++) {
        const float weight = expf(head[piece * step + head_dim] - most);
        sum += head[piece * step + head_dim + 1] * weight;
        value += head[piece * step + d] * weight;
    }
    return value / sum;
}

// Whether this block is the last of n_block to come here; what the others wrote before is there then.  The count is 0
// again for who comes next.
__device__ inline int is_last(int* arrived, int n_block) {
    __shared__ int n_before;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) n_before = atomicAdd(arrived, 1);
    __syncthreads();
    if (n_before + 1 < n_block) return 0;
    if (threadIdx.x == 0) *arrived = 0;
    __threadfence();
    return 1;
}

// A block for each (piece of cells, key/value head, row).  A warp takes a query head of the group, and every k-th 32
// cells of the piece where there are k warps for each head.  Pieces are counted from a sequence's first cell, so that
// what shares the batch decides nothing.  Without partials one piece alone is the result.  With them, `merge` makes it;
// or, where arrived [n, n_kv] counts blocks, the last of a row's key/value head, with its int8 form where q8 is given.
KERNEL attention(const float* q, u8* k_state, u8* v_state, const int* tables, const int* rows, const int* n_visible,
                 float* out, float* partials, int* arrived, i8* q8, float* act_scale, i16* act_sums, int dtype,
                 int n_head, int n_kv, int head_dim, int page_size, int window, int chunk, float scale, float softcap,
                 float temperature, int temperature_length, int piece_cells, int n_piece, const float* bias,
                 const int* positions, int reach, int warps_per_head, int n, int n_pages, const int* dims) {
    SHARED_BYTES(shared);
    const int row = blockIdx.z, kv = blockIdx.y, piece = blockIdx.x;
    if (row >= dim_of(n, dims)) return;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, n_group = n_head / n_kv;
    const int n_warp = blockDim.x / WARP, group_step = n_warp / warps_per_head;
    const int stop = n_visible[row], first = first_seen(stop, window, chunk);
    scale *= sharpening(stop, temperature, temperature_length);
    const int begin = piece * piece_cells, end = begin + piece_cells < stop ? begin + piece_cells : stop;
    const int* table = tables + (i64)rows[row] * dim_of(n_pages, dims);
    const int is_empty = begin >= stop || end <= first;
    if (is_empty && partials != 0) return;                  // who merges knows by the same sums
    float* queries = (float*)shared;                        // [n_warp, head_dim]
    float* sums = queries + n_warp * head_dim;              // [n_warp, head_dim]
    Partial* heads = (Partial*)(sums + n_warp * head_dim);  // [n_warp]
    for (int base = 0; base < n_group; base += group_step) {
        const int member = base + warp / warps_per_head, part = warp % warps_per_head, is_mine = member < n_group;
        const int head = kv * n_group + member;
        float* query = queries + warp * head_dim;
        float values[MAX_LANES] = {};
        Partial p = {-INF, 0.0f};
        if (is_mine) {
            for (int d = lane; d < head_dim; d += WARP) query[d] = q[((i64)row * n_head + head) * head_dim + d];
            __syncwarp();
            const int aligned = (begin > first ? begin : first) / WARP * WARP;
            for (int at = aligned + part * WARP; at < end; at += warps_per_head * WARP) {
                attend(query, k_state, v_state, table, dtype, n_kv, kv, head_dim, page_size, scale, softcap,
                       {bias, positions, reach}, row, head, n_head, at, begin > first ? begin : first, end, p, values);
            }
        }
        for (int j = 0; j < MAX_LANES; j++) {
            if (j * WARP + lane < head_dim) sums[warp * head_dim + j * WARP + lane] = values[j];
        }
        if (lane == 0) heads[warp] = p;
        __syncthreads();
        if (is_mine && part == 0) {
            float most = -INF, sum = 0.0f;
            for (int w = warp; w < warp + warps_per_head; w++) {
                const float other = heads[w].most;
                most = most != most || most > other ? most : other;
            }
            for (int w = warp; w < warp + warps_per_head; w++) {
                if (heads[w].sum != 0.0f) sum += heads[w].sum * expf(heads[w].most - most);
            }
            for (int d = lane; d < head_dim; d += WARP) {
                float value = 0.0f;
                for (int w = warp; w < warp + warps_per_head; w++) {
                    if (heads[w].sum != 0.0f) value += sums[w * head_dim + d] * expf(heads[w].most - most);
                }
                if (partials == 0) {
                    out[((i64)row * n_head + head) * head_dim + d] = value / sum;
                } else {
                    partials[(((i64)row * n_head + head) * n_piece + piece) * (head_dim + 2) + d] = value;
                }
            }
            if (partials != 0 && lane == 0) {
                float* to = partials + (((i64)row * n_head + head) * n_piece + piece) * (head_dim + 2) + head_dim;
                to[0] = most;
                to[1] = sum;
            }
        }
        __syncthreads();
    }
    if (arrived == 0) return;
    const Seen seen = seen_of(first, stop, piece_cells);
    if (!is_last(arrived + (i64)row * n_kv + kv, seen.to - seen.from)) return;
    const i64 group = (i64)row * n_head + kv * n_group;
    for (int i = threadIdx.x; i < n_group * head_dim; i += blockDim.x) {
        const i64 head = group + i / head_dim;
        const float value = merged(partials + head * n_piece * (head_dim + 2), head_dim, seen, i % head_dim);
        out[group * head_dim + i] = value;
        if (q8 != 0) quantize_group(value, (group * head_dim + i) / GROUP, {q8, act_scale, act_sums});
    }
}

// A block for each (head, row): the pieces' results.
KERNEL merge(const float* partials, const int* n_visible, float* out, int n_head, int head_dim, int window, int chunk,
             int piece_cells, int n_piece, int n, const int* dims) {
    const int row = blockIdx.y, head = blockIdx.x;
    if (row >= dim_of(n, dims)) return;
    const int stop = n_visible[row];
    const Seen seen = seen_of(first_seen(stop, window, chunk), stop, piece_cells);
    const i64 at = (i64)row * n_head + head;
    for (int d = threadIdx.x; d < head_dim; d += blockDim.x)
        out[at * head_dim + d] = merged(partials + at * n_piece * (head_dim + 2), head_dim, seen, d);
}
