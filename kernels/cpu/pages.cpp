#include "pages.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

namespace cpu {
namespace {

constexpr size_t kHuge = size_t{2} << 20;  // of x86-64, and of arm64 with 4 KiB pages

void* map(size_t n_bytes) {
    void* address = mmap(nullptr, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return address == MAP_FAILED ? nullptr : address;
}

// A mapping that begins where a huge page may, for only whole aligned ones become huge.
void* map_aligned(size_t n_bytes) {
    auto* start = static_cast<uint8_t*>(map(n_bytes + kHuge));
    if (start == nullptr) return nullptr;
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t head = (kHuge - reinterpret_cast<uintptr_t>(start) % kHuge) % kHuge;
    const size_t used = (n_bytes + page - 1) / page * page;
    if (head != 0) munmap(start, head);
    if (head + used < n_bytes + kHuge) munmap(start + head + used, n_bytes + kHuge - head - used);
    return start + head;
}

}  // namespace

void* map_pages(size_t n_bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* address = n_bytes < kHuge ? map(n_bytes) : map_aligned(n_bytes);
    if (address == nullptr) return nullptr;
#if defined(MADV_HUGEPAGE)
    // 187 MB take 20 ms this way and 105 ms page by page; where Linux refuses, they are taken page by page
    if (n_bytes >= kHuge) madvise(address, n_bytes, MADV_HUGEPAGE);
#endif
    for (size_t i = 0; i < n_bytes; i += page) static_cast<volatile uint8_t*>(address)[i] = 0;
    return address;
}

}  // namespace cpu
