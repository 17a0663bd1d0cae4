#include "isa.hpp"

#if defined(KERNELS_X86)
#include <cpuid.h>
#elif defined(KERNELS_ARM)
#include <sys/auxv.h>
#endif

namespace cpu {
namespace {

#if defined(KERNELS_X86)
// F16C has no name in __builtin_cpu_supports of older compilers.
bool has_f16c() {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
           has_f16c();
}

// Nor has AVX-VNNI.  The kernel saves 256-bit registers where has_avx2() holds, and AVX-VNNI needs no more.
bool has_avxvnni() {
    unsigned a, b, c, d;
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & 1u << 4) != 0;
}

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}
#elif defined(KERNELS_ARM)
bool has_dot_products() {
    constexpr unsigned long kAsimdDp = 1ul << 20;  // HWCAP_ASIMDDP, which older C libraries do not name
    return (getauxval(AT_HWCAP) & kAsimdDp) != 0;
}
#endif

}  // namespace

std::vector<const Kernels*> available_kernels() {
    std::vector<const Kernels*> found;
#if defined(KERNELS_X86)
    __builtin_cpu_init();
    if (has_avx512()) found.push_back(&kAvx512);
    if (has_avxvnni()) found.push_back(&kAvxVnni);
    if (has_avx2()) found.push_back(&kAvx2);
#elif defined(KERNELS_ARM)
    if (has_dot_products()) found.push_back(&kNeon);
#endif
    found.push_back(&kGeneric);
    found.push_back(&kAvx512Emulated);
    return found;
}

}  // namespace cpu
