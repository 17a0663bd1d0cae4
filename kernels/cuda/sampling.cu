// The choice of tokens: kernels/ops/sampling.py, the same tokens bit for bit.
//
// Three launches for all rows of a step, recorded as one graph:
// scan    reads the logits once, by all multiprocessors: the highest of each 128, and the sum of exponentials where
//         log-probabilities are wanted.
// choose  a block for each row.  The k-th highest of these maxima bounds the k-th highest logit from below, so that
// only
//         the few hundreds that can hold it are read again, in order of their ids; everything after is done on that
//         list.
// shares  log-probabilities of the rows that ask for them.
//
// "The first in some order with more than so much weight" is found without sorting: digit by digit of 8 bits from the
// top, by a histogram of weights.  Weights are whole numbers, so threads add them in any order.

#include "common.cuh"
#include "shares.cuh"

#define PER_BLOCK 128    // logits under one maximum
#define MAX_BLOCKS 4096  // MAX_CHOICES / PER_BLOCK
#define N_DIGITS 256
#define MAX_TOP 20
#define NOT_FINITE -1
#define ALL_MASKED -2
#define MIN_TEMPERATURE 1e-7

struct Request {
    double temperature, top_p, min_p, typical_p, repeat_penalty, presence_penalty, frequency_penalty;
    u64 seed, position;
    int top_k, first_count, n_counts;  // of `counts`: those of this row, ids ascending
    int n_logprobs;                    // negative: none are wanted
    int is_masked;
    int code;  // below 0: why there is nothing to choose
};

// Of a step: where things are, and how much.  Requests and counts follow it.
struct Head {
    const float* logits;  // [n_rows, n_vocab]
    const u8* masks;      // [n_rows, n_vocab], of rows that are masked
    int n_rows, pad;
};

struct Count {
    int id, n;
};

// The list of a row, in memory of the device: ids ascending.
struct Choices {
    int* ids;
    double* values;
    u64* weights;
};

struct Found {
    float *raw, *masked;  // [n_rows, n_blocks]: the highest logit, NaN where one has no meaning; under the mask
    double* sums;         // of exponentials relative to the highest
};

struct Shared {
    u64 sums[WARP];
    double parts[WARP];
    u32 low[N_DIGITS], high[N_DIGITS];  // of the weights by digit
    u32 counted[MAX_BLOCKS / 32];       // blocks with tokens that have a penalty
    u64 before;
    int digit;
    int token;
};

// The order of doubles, -0 and 0 alike; no NaN.
__device__ inline u64 key_of(double x) {
    const u64 bits = x == 0.0 ? 0 : (u64)__double_as_longlong(x);
    return bits >> 63 ? ~bits : bits | 1ull << 63;
}

__device__ inline double value_of(u64 key) { return double_of(key >> 63 ? key & ~(1ull << 63) : ~key); }

__device__ inline int n_warps() { return (int)blockDim.x / WARP; }

// The sum over the threads before this one, and over all.
__device__ inline u64 sum_before(u64 x, u64* all, Shared& s) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u64 sum = x;
    for (int step = 1; step < WARP; step *= 2) {
        const u64 other = __shfl_sync(FULL, sum, (lane - step) & (WARP - 1));
        if (lane >= step) sum += other;
    }
    if (lane == WARP - 1) s.sums[warp] = sum;
    __syncthreads();
    u64 before = 0, total = 0;
    for (int i = 0; i < n_warps(); i++) {
        if (i < warp) before += s.sums[i];
        total += s.sums[i];
    }
    __syncthreads();
    *all = total;
    return before + sum - x;
}

__device__ inline u64 sum_of(u64 x, Shared& s) {
    u64 all;
    sum_before(x, &all, s);
    return all;
}

__device__ inline u64 most_of(u64 x, Shared& s) {
    for (int step = WARP / 2; step > 0; step /= 2) {
        const u64 other = __shfl_xor_sync(FULL, x, step);
        x = other > x ? other : x;
    }
    if (threadIdx.x % WARP == 0) s.sums[threadIdx.x / WARP] = x;
    __syncthreads();
    u64 most = 0;
    for (int i = 0; i < n_warps(); i++) most = s.sums[i] > most ? s.sums[i] : most;
    __syncthreads();
    return most;
}

// Native for 32 bits: in two parts.
__device__ inline void add_to_digit(Shared& s, int digit, u64 weight) {
    const u32 low = (u32)weight, before = atomicAdd(&s.low[digit], low);
    const u32 high = (u32)(weight >> 32) + (before + low < low ? 1u : 0u);
    if (high != 0) atomicAdd(&s.high[digit], high);
}

// The highest digit with which `before` and the weights of it and all above it are more than wanted; what is above it
// joins `before`.  By one warp; there is such a digit.
__device__ inline void find_digit(Shared& s, u64 before, double wanted) {
    const int lane = threadIdx.x % WARP, per_lane = N_DIGITS / WARP, first = N_DIGITS - 1 - lane * per_lane;
    u64 mine = 0;
    for (int i = 0; i < per_lane; i++) mine += (u64)s.high[first - i] << 32 | s.low[first - i];
    u64 sum = mine;
    for (int step = 1; step < WARP; step *= 2) {
        const u64 other = __shfl_sync(FULL, sum, (lane - step) & (WARP - 1));
        if (lane >= step) sum += other;
    }
    u64 mass = before + sum - mine;
    if ((double)mass > wanted || !((double)(mass + mine) > wanted)) return;
    int digit = first;
    for (;; digit--) {
        const u64 weight = (u64)s.high[digit] << 32 | s.low[digit];
        if ((double)(mass + weight) > wanted) break;
        mass += weight;
    }
    s.digit = digit, s.before = mass;
}

struct Bound {
    u64 key, before;  // of the last that is kept; the weight of greater keys
    bool is_all;
};

// How far down one has to go, from the greatest key, to have more than `wanted` of weight.
template <class Key, class Weight>
__device__ inline Bound bound_of(int n, double wanted, Key key, Weight weight, Shared& s) {
    u64 total = 0, greatest = 0, least = 0;  // least: of the complements
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        const u64 k = key(i);
        total += weight(i);
        greatest = k > greatest ? k : greatest;
        least = ~k > least ? ~k : least;
    }
    total = sum_of(total, s);
    if (!((double)total > wanted)) return {0, 0, true};
    greatest = most_of(greatest, s);
    const u64 spread = greatest ^ ~most_of(least, s);
    if (spread == 0) return {greatest, 0, false};
    int shift = (63 - __clzll((long long)spread)) / 8 * 8;
    u64 found = greatest >> shift >> 8 << 8 << shift, before = 0;
    for (; shift >= 0; shift -= 8) {
        for (int i = threadIdx.x; i < N_DIGITS; i += blockDim.x) s.low[i] = s.high[i] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < n; i += blockDim.x) {
            const u64 k = key(i);
            if ((k ^ found) >> shift >> 8 == 0) add_to_digit(s, (int)(k >> shift & 255), weight(i));
        }
        __syncthreads();
        if (threadIdx.x < WARP) find_digit(s, before, wanted);
        __syncthreads();
        found |= (u64)s.digit << shift;
        before = s.before;
        __syncthreads();
    }
    return {found, before, false};
}

// Of the list the first by key, greatest first and lower ids before, with more than `wanted` of weight; how many.
template <class Key, class Weight>
__device__ inline int keep(Choices list, int n, double wanted, Key key, Weight weight, Shared& s) {
    const Bound bound = bound_of(n, wanted, key, weight, s);
    if (bound.is_all) return n;
    int n_kept = 0;
    u64 before = bound.before;
    for (int base = 0; base < n; base += (int)blockDim.x) {
        const int i = base + (int)threadIdx.x;
        const u64 k = i < n ? key(i) : 0;
        const bool is_tied = i < n && k == bound.key;
        const int id = i < n ? list.ids[i] : 0;
        const double value = i < n ? list.values[i] : 0.0;
        const u64 mass = i < n ? list.weights[i] : 0;
        u64 tied, all;
        const u64 mine = before + sum_before(is_tied ? weight(i) : 0, &tied, s);
        const bool is_kept = i < n && (k > bound.key || (is_tied && !((double)mine > wanted)));
        const int place = n_kept + (int)sum_before(is_kept, &all, s);  // no later than where it was
        if (is_kept) list.ids[place] = id, list.values[place] = value, list.weights[place] = mass;
        n_kept += (int)all;
        before += tied;
    }
    __syncthreads();
    return n_kept;
}

// Where the list has its greatest value, of equals the first.
__device__ inline int likeliest(Choices list, int n, Shared& s) {
    u64 best = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        const u64 key = key_of(list.values[i]);
        best = key > best ? key : best;
    }
    best = most_of(best, s);
    u64 first = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        if (key_of(list.values[i]) == best && first == 0) first = ~(u64)i;
    return (int)~most_of(first, s);
}

// How often a token with a penalty was seen, 0 for others.
__device__ inline int count_of(const Count* counts, int n, int id) {
    int low = 0, high = n;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (counts[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < n && counts[low].id == id ? counts[low].n : 0;
}

__device__ inline double penalized(double logit, int count, const Request& p) {
    logit = logit > 0.0 ? logit / p.repeat_penalty : EXACT_MUL(logit, p.repeat_penalty);
    return EXACT_ADD(logit, -EXACT_ADD(EXACT_MUL((double)count, p.frequency_penalty), p.presence_penalty));
}

// A row as `gather` reads it.
struct Row {
    const float* logits;
    const u8* mask;       // or none
    const float* maxima;  // of each 128, under the mask
    const Count* counts;
    int n_counts;
};

// The list of all that may be among the k highest, and of all that have a penalty; how many, or NOT_FINITE.
__device__ inline int gather(Row row, const Request& p, int k, int n_vocab, int* visited, Choices to, Shared& s) {
    const int n_blocks = (n_vocab + PER_BLOCK - 1) / PER_BLOCK;
    const auto key = [=](int i) { return key_of((double)row.maxima[i]); };
    u64 least = 0;
    if (k <= n_blocks) least = bound_of(n_blocks, (double)(k - 1), key, [](int) { return 1ull; }, s).key;
    for (int i = threadIdx.x; i < MAX_BLOCKS / 32; i += blockDim.x) s.counted[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < row.n_counts; i += blockDim.x) {
        const int block = row.counts[i].id / PER_BLOCK;
        atomicOr(&s.counted[block / 32], 1u << block % 32);
    }
    __syncthreads();
    int n_visited = 0;
    u64 all;
    for (int base = 0; base < n_blocks; base += (int)blockDim.x) {
        const int block = base + (int)threadIdx.x;
        const bool is_wanted = block < n_blocks && (key(block) >= least || s.counted[block / 32] >> block % 32 & 1);
        const int place = n_visited + (int)sum_before(is_wanted, &all, s);
        if (is_wanted) visited[place] = block;
        n_visited += (int)all;
    }
    __syncthreads();
    int n = 0;
    bool is_bad = false;
    for (int base = 0; base < n_visited * PER_BLOCK; base += (int)blockDim.x) {
        const int at = base + (int)threadIdx.x;
        const int block = at < n_visited * PER_BLOCK ? visited[at / PER_BLOCK] : n_blocks;
        const int id = block * PER_BLOCK + at % PER_BLOCK;
        const bool is_here = id < n_vocab;
        double value = !is_here || (row.mask != 0 && row.mask[id] == 0) ? -(double)INF : (double)row.logits[id];
        bool is_wanted = is_here && key_of(value) >= least;
        if (is_here && s.counted[block / 32] >> block % 32 & 1) {
            const int count = count_of(row.counts, row.n_counts, id);
            if (count > 0) value = penalized(value, count, p), is_wanted = true, is_bad |= value != value;
        }
        const int place = n + (int)sum_before(is_wanted, &all, s);
        if (is_wanted) to.ids[place] = id, to.values[place] = value, to.weights[place] = 0;
        n += (int)all;
    }
    return __syncthreads_or(is_bad) ? NOT_FINITE : n;
}

// The greatest of a row's maxima; NaN where a logit has no meaning, or all are -infinity.
__device__ inline float highest_of(const float* maxima, int n_blocks, Shared& s) {
    u64 best = 0;
    bool is_bad = false;
    for (int i = threadIdx.x; i < n_blocks; i += blockDim.x) {
        is_bad |= maxima[i] != maxima[i];
        const u64 key = key_of((double)maxima[i]);
        best = key > best ? key : best;
    }
    is_bad = __syncthreads_or(is_bad);
    const float highest = (float)value_of(most_of(best, s));
    return is_bad || highest == -INF ? INF - INF : highest;
}

// The list's draw: where.
__device__ inline int draw(Choices list, int n, const Request& p, Shared& s) {
    u64 total = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) total += list.weights[i];
    total = sum_of(total, s);
    if (total == 0) return likeliest(list, n, s);  // all are too unlikely to count
    const u64 target = target_of(p.seed, p.position, total);
    u64 mass = 0;
    for (int base = 0; base < n; base += (int)blockDim.x) {
        const int i = base + (int)threadIdx.x;
        const u64 weight = i < n ? list.weights[i] : 0;
        u64 all;
        const u64 before = mass + sum_before(weight, &all, s);
        if (before <= target && target < before + weight) s.token = i;
        mass += all;
    }
    __syncthreads();
    const int place = s.token;
    __syncthreads();
    return place;
}

// Steps 5 to 8: weights of a list that holds the top k, in place; how many are left.
__device__ inline int narrow(Choices list, int n, double highest, const Request& p, Shared& s) {
    const double temperature = p.temperature > MIN_TEMPERATURE ? p.temperature : MIN_TEMPERATURE;
    const auto scaled = [=](int i) { return (list.values[i] - highest) / temperature; };
    const auto weight = [=](int i) { return list.weights[i]; };
    u64 total = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) total += list.weights[i] = weight_of(scaled(i));
    total = sum_of(total, s);
    if (p.typical_p < 1.0) {
        u64 moment = 0;
        for (int i = threadIdx.x; i < n; i += blockDim.x) moment += moment_of(list.weights[i], scaled(i));
        const double mean = (double)sum_of(moment, s) / (double)total;
        const auto nearness = [=](int i) { return ~key_of(fabs(-scaled(i) - mean)); };
        n = keep(list, n, (p.typical_p > 0.0 ? p.typical_p : 0.0) * (double)total, nearness, weight, s);
    }
    if (p.top_p < 1.0) {
        total = 0;
        for (int i = threadIdx.x; i < n; i += blockDim.x) total += list.weights[i];
        total = sum_of(total, s);
        const auto key = [=](int i) { return key_of(list.values[i]); };
        n = keep(list, n, (p.top_p > 0.0 ? p.top_p : 0.0) * (double)total, key, weight, s);
    }
    if (p.min_p > 0.0) {
        u64 heaviest = 0;
        for (int i = threadIdx.x; i < n; i += blockDim.x)
            heaviest = list.weights[i] > heaviest ? list.weights[i] : heaviest;
        const double floor = (p.min_p < 1.0 ? p.min_p : 1.0) * (double)most_of(heaviest, s);
        for (int i = threadIdx.x; i < n; i += blockDim.x)
            if ((double)list.weights[i] < floor) list.weights[i] = 0;  // never drawn
        __syncthreads();
    }
    return n;
}

__device__ inline int token_of(Row row, const float* raw, const Request& p, int n_vocab, int* visited, Choices list,
                               Shared& s) {
    const float highest_raw = highest_of(raw, (n_vocab + PER_BLOCK - 1) / PER_BLOCK, s);
    if (highest_raw != highest_raw) return NOT_FINITE;
    const int k = p.temperature <= 0.0 ? 1 : p.top_k <= 0 || p.top_k > n_vocab ? n_vocab : p.top_k;
    int n = gather(row, p, k + row.n_counts, n_vocab, visited, list, s);
    if (n < 0) return n;
    const int best = likeliest(list, n, s);
    const double highest = list.values[best];
    if (highest == (double)INF) return NOT_FINITE;
    if (highest == -(double)INF) return ALL_MASKED;
    if (p.temperature <= 0.0) return list.ids[best];
    const auto key = [=](int i) { return key_of(list.values[i]); };
    n = keep(list, n, (double)(k - 1), key, [](int) { return 1ull; }, s);
    n = narrow(list, n, highest, p, s);
    return list.ids[draw(list, n, p, s)];
}

__device__ inline const Count* counts_of(const Head* head, const Request* requests) {
    return (const Count*)(requests + head->n_rows);
}

__device__ inline Choices list_of(u8* lists, int n_vocab) {
    const i64 n = n_vocab, slot = blockIdx.x;
    u64* weights = (u64*)lists + slot * n;
    double* values = (double*)lists + (gridDim.x + slot) * n;
    int* ids = (int*)((double*)lists + 2 * gridDim.x * n) + slot * n;
    return {ids, values, weights};
}

// A warp for each 128 logits of a row, whose highest is NaN where one is NaN or infinite.
KERNEL sample_scan(const Head* head, float* raw, float* masked, double* sums, int n_vocab) {
    const int lane = threadIdx.x % WARP, n_blocks = (n_vocab + PER_BLOCK - 1) / PER_BLOCK, row = blockIdx.y;
    const int block = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= head->n_rows || block >= n_blocks) return;
    const Request& p = ((const Request*)(head + 1))[row];
    const float* from = head->logits + (i64)row * n_vocab;
    const u8* mask = p.is_masked ? head->masks + (i64)row * n_vocab : 0;
    float x[PER_BLOCK / WARP], highest = -INF, allowed = -INF;
    int is_fine = 1;
    for (int i = 0; i < PER_BLOCK / WARP; i++) {
        const int id = block * PER_BLOCK + i * WARP + lane;
        x[i] = id < n_vocab ? from[id] : -INF;
        is_fine &= x[i] < INF;
        highest = fmaxf(highest, x[i]);
        if (mask == 0 || (id < n_vocab && mask[id] != 0)) allowed = fmaxf(allowed, x[i]);
    }
    highest = warp_max(highest);
    allowed = warp_max(allowed);
    is_fine = __all_sync(FULL, is_fine);
    double sum = 0.0;
    if (p.n_logprobs >= 0 && highest > -INF) {
        for (int i = 0; i < PER_BLOCK / WARP; i++) sum += exp((double)x[i] - (double)highest);
        sum = warp_sum(sum);
    }
    if (lane != 0) return;
    const i64 at = (i64)row * n_blocks + block;
    raw[at] = is_fine ? highest : INF - INF;
    masked[at] = allowed;
    sums[at] = sum;
}

// A block for each row, several rows one after the other where rows are more.
KERNEL sample_choose(const Head* head, const float* raw, const float* masked, int* visited, u8* lists, int* tokens,
                     int n_vocab) {
    __shared__ Shared s;
    const int n_blocks = (n_vocab + PER_BLOCK - 1) / PER_BLOCK;
    const Request* requests = (const Request*)(head + 1);
    for (int at = blockIdx.x; at < head->n_rows; at += gridDim.x) {
        const Request& p = requests[at];
        const Row row = {head->logits + (i64)at * n_vocab, p.is_masked ? head->masks + (i64)at * n_vocab : 0,
                         masked + (i64)at * n_blocks, counts_of(head, requests) + p.first_count, p.n_counts};
        int token = p.code;
        if (token >= 0)
            token = token_of(row, raw + (i64)at * n_blocks, p, n_vocab, visited + (i64)blockIdx.x * n_blocks,
                             list_of(lists, n_vocab), s);
        if (threadIdx.x == 0) tokens[at] = token;
        __syncthreads();  // all have read the list
    }
}

// Natural log-probabilities of raw logits: the chosen token's, and the likeliest in order.
KERNEL sample_shares(const Head* head, const float* raw, const double* sums, int* visited, u8* lists, const int* tokens,
                     double* chosen, int* top_ids, double* top, int n_vocab) {
    __shared__ Shared s;
    const int n_blocks = (n_vocab + PER_BLOCK - 1) / PER_BLOCK;
    const Request* requests = (const Request*)(head + 1);
    for (int at = blockIdx.x; at < head->n_rows; at += gridDim.x) {
        const Request& p = requests[at];
        if (p.n_logprobs < 0 || tokens[at] < 0) continue;
        const float* maxima = raw + (i64)at * n_blocks;
        const Row row = {head->logits + (i64)at * n_vocab, 0, maxima, 0, 0};
        const double highest = highest_of(maxima, n_blocks, s);
        double total = 0.0;
        for (int i = threadIdx.x; i < n_blocks; i += blockDim.x)
            if (maxima[i] > -INF) total += sums[(i64)at * n_blocks + i] * exp((double)maxima[i] - highest);
        total = warp_sum(total);
        if (threadIdx.x % WARP == 0) s.parts[threadIdx.x / WARP] = total;
        __syncthreads();
        total = 0.0;
        for (int i = 0; i < n_warps(); i++) total += s.parts[i];
        const double log_total = highest + log(total);
        if (threadIdx.x == 0) chosen[at] = (double)row.logits[tokens[at]] - log_total;
        const int n_top = p.n_logprobs < n_vocab ? p.n_logprobs : n_vocab;
        if (n_top > 0) {
            const Choices list = list_of(lists, n_vocab);
            int n = gather(row, p, n_top, n_vocab, visited + (i64)blockIdx.x * n_blocks, list, s);
            const auto key = [=](int i) { return key_of(list.values[i]); };
            n = keep(list, n, (double)(n_top - 1), key, [](int) { return 1ull; }, s);
            if ((int)threadIdx.x < n) {
                const u64 mine = key(threadIdx.x);
                int rank = 0;
                for (int i = 0; i < n; i++) rank += key(i) > mine || (key(i) == mine && i < (int)threadIdx.x);
                top_ids[at * MAX_TOP + rank] = list.ids[threadIdx.x];
                top[at * MAX_TOP + rank] = list.values[threadIdx.x] - log_total;
            }
        }
        __syncthreads();
    }
}
