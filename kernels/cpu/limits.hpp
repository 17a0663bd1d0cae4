// What the machine can do at most, measured: the ceilings that the kernels are compared with.
#pragma once

#include <cstdint>

#include "kernels.hpp"
#include "pool.hpp"

namespace cpu {

struct Measured {
    double seconds;
    uint64_t result;
};

// All threads read the bytes once, each its share; the result is the sum of the 64-bit words.
// What is left over after whole steps of kReadStep is not read.
Measured measure_read(Pool& pool, const Kernels& kernels, const uint8_t* data, int64_t n_bytes);

// All threads multiply and accumulate bytes (or floats) in registers; the result is the number of products.
Measured measure_int8(Pool& pool, const Kernels& kernels, int64_t n_rounds);
Measured measure_f32(Pool& pool, const Kernels& kernels, int64_t n_rounds);

}  // namespace cpu
