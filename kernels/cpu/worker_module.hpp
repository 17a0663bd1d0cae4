#pragma once

#include <nanobind/nanobind.h>

namespace cpu {

// Adds the class Worker, once Pool, Segment and SamplingParams are there.
void bind_worker(nanobind::module_& m);

}  // namespace cpu
