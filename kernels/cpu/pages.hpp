#pragma once

#include <cstddef>

namespace cpu {

// Zeroed pages that exist when this returns, in huge pages where Linux gives them; null when there is no memory.
// To be given back with munmap(address, n_bytes).
void* map_pages(size_t n_bytes);

}  // namespace cpu
