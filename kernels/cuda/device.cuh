// What a GPU has and the emulator has its own of: conversions of 16-bit floats without CUDA's headers.
#pragma once

#define KERNEL extern "C" __global__ void
#define SHARED_BYTES(name) extern __shared__ __align__(16) unsigned char name[]

__device__ inline float half_to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ inline unsigned short float_to_half(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
