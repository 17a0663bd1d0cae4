// x86-64 with AVX2, FMA, F16C and BMI2.
#define KERNEL_NS cpu_avx2
#define KERNEL_LANES 8
#define KERNEL_AVX2 1
#define KERNEL_NAME "avx2"
#define KERNEL_TABLE kAvx2
#include "isa.inc"
