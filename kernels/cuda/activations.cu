// What products need of their activations before, and of a library's result after, whatever type the weight has.

#include "common.cuh"

// A warp for each group of 32 activations.
KERNEL quantize(const float* x, i8* q, float* scale, i16* sums, int n_in, int n, const int* dims) {
    const i64 group = (i64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (group >= (i64)dim_of(n, dims) * (n_in / GROUP)) return;
    quantize_group(x[group * GROUP + threadIdx.x % WARP], group, {q, scale, sums});
}

// A block for each row: activations as f16, divided by a power of two that brings the largest near 1024.
KERNEL halve(const float* x, u16* out, float* scale, int n_in, int n, const int* dims) {
    __shared__ float most_of[WARP];
    const int row = blockIdx.x;
    if (row >= dim_of(n, dims)) return;
    const float* from = x + (i64)row * n_in;
    float most = 0.0f;
    for (int i = threadIdx.x; i < n_in; i += blockDim.x) most = fmaxf(most, fabsf(from[i]));
    most = warp_max(most);
    if (threadIdx.x % WARP == 0) most_of[threadIdx.x / WARP] = most;
    __syncthreads();
    for (int i = 0; i < (int)blockDim.x / WARP; i++) most = fmaxf(most, most_of[i]);
    int exponent = 0;
    if (most > 0.0f && most < INF) exponent = (__float_as_int(most) >> 23) - 127 - 10;
    exponent = exponent < -100 ? -100 : exponent > 100 ? 100 : exponent;
    const float up = __int_as_float((127 - exponent) << 23);
    for (int i = threadIdx.x; i < n_in; i += blockDim.x) out[(i64)row * n_in + i] = float_to_half(from[i] * up);
    if (threadIdx.x == 0) scale[row] = __int_as_float((127 + exponent) << 23);
}

// What the library's product gave, times each row's scale, with bias and residual.
KERNEL unhalve(const float* product, const float* scale, const float* bias, const float* residual, float* out,
               int n_out, int n, const int* dims) {
    const i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (i64)dim_of(n, dims) * n_out) return;
    finish(product[i] * scale[i / n_out], i, (int)(i % n_out), bias, residual, out);
}
