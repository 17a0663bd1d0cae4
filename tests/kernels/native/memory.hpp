// Memory in which every access outside a buffer shows: pages without access at both ends, NaNs in between.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace native {

// Where a buffer lies between the pages that nobody may touch.
enum class Place {
    AtEnd,    // the byte after it is one of theirs
    AtStart,  // the byte before it is
    Odd,      // between NaNs; weights at an odd address, since a file promises no better
};

constexpr Place kPlaces[] = {Place::AtEnd, Place::AtStart, Place::Odd};

constexpr uint8_t kPoison = 0xff;  // four of them are a NaN in F32, two in F16

class Pages {
public:
    Pages(size_t n_bytes, Place place, size_t odd_offset) : n_bytes_(n_bytes) {
        size_ = (n_bytes + kMargin + 2 * kPage - 1) / kPage * kPage + 2 * kPage;
        void* raw = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (raw == MAP_FAILED) {
            std::fprintf(stderr, "no memory for a buffer of %zu bytes\n", n_bytes);
            std::exit(2);
        }
        base_ = static_cast<uint8_t*>(raw);
        std::memset(base_, kPoison, size_);
        mprotect(base_, kPage, PROT_NONE);
        mprotect(base_ + size_ - kPage, kPage, PROT_NONE);
        if (place == Place::AtEnd) data_ = base_ + size_ - kPage - n_bytes;
        if (place == Place::AtStart) data_ = base_ + kPage;
        if (place == Place::Odd) data_ = base_ + kPage + kMargin / 2 + odd_offset;
    }
    Pages(Pages&& from) noexcept
        : base_(std::exchange(from.base_, nullptr)), data_(from.data_), size_(from.size_), n_bytes_(from.n_bytes_) {}
    ~Pages() {
        if (base_ != nullptr) munmap(base_, size_);
    }

    uint8_t* data() const { return data_; }

    // Whether all bytes round the buffer are what they were.
    bool is_whole() const {
        for (const uint8_t* p = base_ + kPage; p < base_ + size_ - kPage; p++) {
            if ((p < data_ || p >= data_ + n_bytes_) && *p != kPoison) return false;
        }
        return true;
    }

private:
    static constexpr size_t kPage = 65536;  // at least as large as anywhere
    static constexpr size_t kMargin = 1024;
    uint8_t *base_, *data_ = nullptr;
    size_t size_, n_bytes_;
};

// n elements of T, NaN or -1 until written.
template <class T>
class Buffer {
public:
    Buffer(int64_t n, Place place) : n_(n), pages_(static_cast<size_t>(n) * sizeof(T), place, sizeof(T) == 1 ? 1 : 0) {}
    T* data() const { return reinterpret_cast<T*>(pages_.data()); }
    T& operator[](int64_t i) const { return data()[i]; }
    int64_t size() const { return n_; }
    size_t n_bytes() const { return static_cast<size_t>(n_) * sizeof(T); }
    bool is_whole() const { return pages_.is_whole(); }

private:
    int64_t n_;
    Pages pages_;
};

}  // namespace native
