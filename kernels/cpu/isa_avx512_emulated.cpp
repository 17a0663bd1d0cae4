// The 512-bit path in plain C++, so that it is tested on machines without AVX-512.
#define KERNEL_NS cpu_avx512_emulated
#define KERNEL_LANES 16
#define KERNEL_NAME "avx512-emulated"
#define KERNEL_TABLE kAvx512Emulated
#include "isa.inc"
