// Ops that make each number of a few others: gates, caps, rows, norms, rotation, the choice of experts.

#include "blocks.cuh"
#include "common.cuh"

// q, scale, sums where a kernel has them: the int8 form of its result as well, where a product reads it next, or none.

#define SILU 0
#define GELU 1
#define RELU 2

// max(x, 0), NaN where x is; or x / (1 + exp(-z)), z = x or, for gelu, sqrt(8 / pi) * (x + 0.044715 x^3).
__device__ inline float activated(float x, int activation) {
    if (activation == RELU) return x < 0.0f ? 0.0f : x;
    const float z = activation == GELU ? 1.5957691216f * (x + 0.044715f * x * x * x) : x;
    return x / (1.0f + expf(-z));
}

// activation(gate) * up, or activation(gate) where there is no up.
KERNEL gate(const float* gate, const float* up, float* out, i8* q, float* scale, i16* sums, int activation, int width,
            int n, const int* dims) {
    const i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (i64)dim_of(n, dims) * width) return;
    const float factor = up != 0 ? up[i] : 1.0f, value = activated(gate[i], activation) * factor;
    out[i] = value;
    if (q != 0) quantize_group(value, i / GROUP, {q, scale, sums});
}

// cap * tanh(x / cap)
KERNEL softcap(const float* x, float* out, float cap, int width, int n, const int* dims) {
    const i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < (i64)dim_of(n, dims) * width) out[i] = cap * tanhf(x[i] / cap);
}

// Each slot's number in turn, and the residual.
KERNEL slot_sum(const float* x, const float* residual, float* out, int n_slot, int width, int n, const int* dims) {
    const i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (i64)dim_of(n, dims) * width) return;
    const float* from = x + i / width * n_slot * width + i % width;
    float sum = from[0];
    for (int slot = 1; slot < n_slot; slot++) sum += from[(i64)slot * width];
    out[i] = residual != 0 ? sum + residual[i] : sum;
}

#define SOFTMAX 0
#define CHOSEN_SOFTMAX 1
#define SIGMOID 2

// A warp for each row.  A lane looks after every 32nd expert and remembers which of them are taken, a bit for each; the
// largest that is left is found n_used times, of equal ones the lower id.
KERNEL route(const float* logits, int* ids, float* weights, int n_expert, int n_used, int gating, int n,
             const int* dims) {
    const int lane = threadIdx.x % WARP;
    const i64 row = (i64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= dim_of(n, dims)) return;
    const float* from = logits + row * n_expert;
    float* to = weights + row * n_used;
    float top = 0.0f, total = 0.0f;
    int is_nan = 0;
    u32 taken = 0;
    for (int j = 0; j < n_used; j++) {
        float best = -INF;
        int id = n_expert;  // none
        for (int e = lane; e < n_expert; e += WARP) {
            const float logit = from[e];
            is_nan |= logit != logit;
            if (!(taken >> e / WARP & 1) && (id == n_expert || logit > best)) {
                id = e;
                best = logit == logit ? logit : -INF;  // lanes must agree on an order
            }
        }
        for (int step = WARP / 2; step > 0; step /= 2) {
            const float other = __shfl_xor_sync(FULL, best, step);
            const int other_id = __shfl_xor_sync(FULL, id, step);
            if (other > best || (other == best && other_id < id)) {
                best = other;
                id = other_id;
            }
        }
        if (lane == id % WARP) taken |= 1u << id / WARP;
        if (j == 0) top = best;
        total += expf(best - top);
        if (lane == 0) {
            ids[row * n_used + j] = id;
            to[j] = best;
        }
    }
    if (gating == SOFTMAX) {
        total = 0.0f;
        for (int e = lane; e < n_expert; e += WARP) total += expf(from[e] - top);
        total = warp_sum(total);
    }
    is_nan = __any_sync(FULL, is_nan);
    __syncwarp();
    for (int j = lane; j < n_used; j += WARP) {
        const float weight = gating == SIGMOID ? 1.0f / (1.0f + expf(-to[j])) : expf(to[j] - top) / total;
        to[j] = is_nan ? INF - INF : weight;
    }
}

// A block for each row: rows of a table in any format, dequantised.
KERNEL rows(const u8* table, const int* ids, float* out, float scale, int dtype, int width, i64 row_bytes, int n,
            const int* dims) {
    const int row = blockIdx.x;
    if (row >= dim_of(n, dims)) return;
    const u8* from = table + ids[row] * row_bytes;
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        out[(i64)row * width + i] = element_of(dtype, from, i) * scale;
}

// A block for each chunk of a row.  Squares are summed in float64: an activation of 1e20 is no reason for an infinity.
KERNEL rms_norm(const float* x, const float* weight, const float* residual, float* out, i8* q, float* scale, i16* sums,
                int chunk, int chunks_per_row, float eps, int n, const int* dims) {
    __shared__ double squares[WARP];
    const i64 unit = blockIdx.x;
    if (unit >= (i64)dim_of(n, dims) * chunks_per_row) return;
    const float* from = x + unit * chunk;
    double sum = 0.0;
    for (int i = threadIdx.x; i < chunk; i += blockDim.x) sum += (double)from[i] * (double)from[i];
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) squares[threadIdx.x / WARP] = sum;
    __syncthreads();
    double total = 0.0;
    for (int i = 0; i < (int)blockDim.x / WARP; i++) total += squares[i];
    const float inverse = (float)(1.0 / sqrt(total / chunk + (double)eps));
    for (int i = threadIdx.x; i < chunk; i += blockDim.x) {
        const i64 at = unit * chunk + i;
        float value = from[i] * inverse * (weight != 0 ? weight[i] : 1.0f);
        if (residual != 0) value += residual[at];
        out[at] = value;
        if (q != 0) quantize_group(value, at / GROUP, {q, scale, sums});
    }
}

// A thread for each pair of each head, and for each value that is not turned.
KERNEL rope(const float* x, const int* positions, float* out, const float* inv_freq, float magnitude, int n_pair,
            int is_neox, int n_head, int head_dim, int n, const int* dims) {
    const int per_head = head_dim - n_pair;
    const i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x, head = i / per_head;
    if (head >= (i64)dim_of(n, dims) * n_head) return;
    const int at = (int)(i % per_head);
    const float* from = x + head * head_dim;
    float* to = out + head * head_dim;
    if (at >= n_pair) {
        to[at + n_pair] = from[at + n_pair];
        return;
    }
    float cosine, sine;
    turn(positions[head / n_head], inv_freq[at], &cosine, &sine);
    const int first = is_neox ? at : 2 * at, second = is_neox ? at + n_pair : 2 * at + 1;
    const float a = from[first], b = from[second];
    to[first] = (a * cosine - b * sine) * magnitude;
    to[second] = (a * sine + b * cosine) * magnitude;
}

// A thread for each channel goes through all inputs in order, the last ones at hand (kernels/ops/conv.py).
KERNEL short_conv(const float* x, const float* weight, float* state, const int* rows, const int* sources,
                  const int* targets, float* out, int width, int n_taps, int n, const int* dims) {
    const int channel = blockIdx.x * blockDim.x + threadIdx.x, n_before = n_taps - 1, n_row = dim_of(n, dims);
    if (channel >= width) return;
    float taps[16], before[16];
    for (int t = 0; t < n_taps; t++) taps[t] = weight[channel * n_taps + t];
    for (int i = 0; i < n_row; i++) {
        const int row = rows[i];
        if (i == 0 || rows[i - 1] != row) {
            const float* from = state + (i64)sources[row] * n_before * width + channel;
            for (int t = 0; t < n_before; t++) before[t] = from[(i64)t * width];
        }
        const float* in = x + (i64)3 * i * width + channel;
        const float input = in[0] * in[2 * width];
        float sum = taps[n_before] * input;
        for (int t = 0; t < n_before; t++) sum = fmaf(taps[t], before[t], sum);
        out[(i64)i * width + channel] = sum * in[width];
        for (int t = 0; t + 1 < n_before; t++) before[t] = before[t + 1];
        before[n_before - 1] = input;
        if (i + 1 == n_row || rows[i + 1] != row) {
            float* to = state + (i64)targets[row] * n_before * width + channel;
            for (int t = 0; t < n_before; t++) to[(i64)t * width] = before[t];
        }
    }
}
