// Any processor: plain C++ on vectors of eight floats.
#define KERNEL_NS cpu_generic
#define KERNEL_LANES 8
#define KERNEL_NAME "generic"
#define KERNEL_TABLE kGeneric
#include "isa.inc"
