// What a GPU has and the emulator has its own of: conversions of 16-bit floats without CUDA's headers, and matrix
// instructions (PTX ISA, "Matrix multiply-accumulate operation using mma instruction").
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

// Two halves as one word, `low` in the lower.
__device__ inline unsigned halves_of(float low, float high) {
#if __CUDA_ARCH__ >= 800
    unsigned word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    return float_to_half(low) | (unsigned)float_to_half(high) << 16;
#endif
}

// A warp's c [16, 8] f32 += a [16, 16] f16 times b [16, 8] f16.  Lane 4 * g + t holds, each word two neighbours:
// of a: (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8);  of b, down a column: (2t, g), (2t + 8, g);
// of c, each number by itself: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
__device__ inline void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    for (int k = 0; k < 2; k++) {
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[2 * k]), "r"(a[2 * k + 1]), "r"(k ? b1 : b0));
    }
#endif
}

// Four matrices [8, 8] f16 in shared memory, lane 8 * m + r at row r (16 bytes) of the m-th; to[m] of lane 4 * g + t is
// (2t, g) and (2t + 1, g) of the m-th: what `mma` takes as b of a matrix that lies row by row.
__device__ inline void load_transposed(unsigned (&to)[4], const unsigned short* row) {
    const unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
}
