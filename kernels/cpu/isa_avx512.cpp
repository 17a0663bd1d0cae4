// x86-64 with AVX-512 F, BW, VL, DQ and VNNI.
#define KERNEL_NS cpu_avx512
#define KERNEL_LANES 16
#define KERNEL_AVX512 1
#define KERNEL_NAME "avx512"
#define KERNEL_TABLE kAvx512
#include "isa.inc"
