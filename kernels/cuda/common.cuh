// What all kernels share.  No header of CUDA's is included: NVRTC has none at hand, and the emulator has its own.
#pragma once

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef short i16;
typedef unsigned int u32;
typedef long long i64;

#define WARP 32
#define FULL 0xffffffffu
#define GROUP 32  // activations that share a scale
#define INF __int_as_float(0x7f800000)

// A dimension of a run: a number >= 0, or -1 - i for the i-th of `dims`, which lie in device memory, so that a captured
// graph serves every size up to the one it was captured for.
__device__ inline int dim_of(int dim, const int* dims) { return dim >= 0 ? dim : dims[-1 - dim]; }

__device__ inline float bf16_of(u16 bits) { return __int_as_float((int)bits << 16); }

template <class T>
__device__ inline T warp_sum(T x) {
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(FULL, x, step);
    return x;
}

__device__ inline float warp_max(float x) {
    for (int step = WARP / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(FULL, x, step));
    return x;
}

// Activations as int8: q [n, n_in], scale [n, n_in / 32], sums of q over each 16 [n, n_in / 16].
struct Acts {
    i8* q;
    float* scale;
    i16* sums;
};

// A warp makes a group of the values of its lanes.  One that is not finite makes the group's scale NaN.
__device__ inline void quantize_group(float value, i64 group, Acts acts) {
    const int lane = threadIdx.x % WARP;
    const float most = warp_max(fabsf(value));
    const int is_finite = __all_sync(FULL, fabsf(value) < INF);
    const float inverse = is_finite && most > 0.0f ? 127.0f / most : 0.0f;
    const int level = is_finite ? __float2int_rn(value * inverse) : 0;
    int sum = level;
    for (int step = 8; step > 0; step /= 2) sum += __shfl_xor_sync(FULL, sum, step);
    acts.q[group * GROUP + lane] = (i8)level;
    if (lane % 16 == 0) acts.sums[group * 2 + lane / 16] = (i16)sum;
    if (lane == 0) acts.scale[group] = is_finite ? most / 127.0f : INF - INF;
}

// What is left of a product to do: bias of the weight's row, residual.
__device__ inline void finish(float value, i64 at, int row, const float* bias, const float* residual, float* out) {
    if (bias != 0) value += bias[row];
    out[at] = residual != 0 ? value + residual[at] : value;
}

// cos and sin of position * frequency: the whole turns are taken off in float64, which angles of 10^5 need.
__device__ inline void turn(int position, float frequency, float* cosine, float* sine) {
    const double angle = (double)position * (double)frequency, two_pi = 6.283185307179586;
    const float rest = (float)(angle - rint(angle / two_pi) * two_pi);
    *cosine = cosf(rest);
    *sine = sinf(rest);
}
