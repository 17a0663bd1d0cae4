// Which instruction sets this build has and this machine can run.
#pragma once

#include <vector>

#include "kernels.hpp"

namespace cpu {

// Best first; the emulated ones last, which nobody chooses but tests.
std::vector<const Kernels*> available_kernels();

}  // namespace cpu
