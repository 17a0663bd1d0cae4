// aarch64 with the dot products of Armv8.2 (asimddp).  Four lanes: a vector of the compiler's is then a register, and
// not a pair that it would keep in memory.
#define KERNEL_NS cpu_neon
#define KERNEL_LANES 4
#define KERNEL_NEON 1
#define KERNEL_NAME "neon"
#define KERNEL_TABLE kNeon
#include "isa.inc"
