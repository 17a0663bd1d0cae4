// x86-64 with AVX2, FMA, F16C, BMI2 and AVX-VNNI.
#define KERNEL_NS cpu_avxvnni
#define KERNEL_LANES 8
#define KERNEL_AVX2 1
#define KERNEL_VNNI 1
#define KERNEL_NAME "avxvnni"
#define KERNEL_TABLE kAvxVnni
#include "isa.inc"
