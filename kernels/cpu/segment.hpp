// A bound run of ops: addresses and constants resolved once, then executed whole on the pool.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "pool.hpp"

namespace cpu {

// A dimension: a number >= 0, or -1 - i for the i-th symbol's value.
using Dim = int64_t;
using Values = std::vector<int64_t>;

inline int64_t value_of(Dim dim, const Values& values) {
    return dim >= 0 ? dim : values[static_cast<size_t>(-1 - dim)];
}

class Step {
public:
    virtual ~Step() = default;
    virtual int n_phases() const { return 1; }
    // One thread's part; a barrier follows every phase.
    virtual void run(const Kernels&, const Values&, int phase, const PoolThread&) const = 0;
};

// Every value of an index array lies in 0..limit-1.
struct IndexCheck {
    std::string name;
    const int32_t* data;
    Dim n, limit;
};

// Rows name sequences that exist, what they see fits their tables, and the pages they use exist.
struct TableCheck {
    std::string tables_name, rows_name, visible_name;
    const int32_t *tables, *rows, *n_visible;
    Dim n, n_seqs, n_pages;
    int64_t page_size, n_cells;
    std::vector<int64_t> most_visible;  // scratch, one per sequence
};

class Segment {
public:
    Segment(std::shared_ptr<Pool> pool, const Kernels& kernels) : pool_(std::move(pool)), kernels_(kernels) {}
    Segment(const Segment&) = delete;
    Segment& operator=(const Segment&) = delete;

    void add(std::unique_ptr<Step> step) { steps_.push_back(std::move(step)); }
    void check(IndexCheck check) { index_checks_.push_back(std::move(check)); }
    void check(TableCheck check) { table_checks_.push_back(std::move(check)); }
    int n_threads() const { return pool_->n_threads(); }

    // std::invalid_argument names an index input that is out of range; nothing has been written then.
    // is_alone: on the caller's thread, for what is small.
    void run(const Values& values, bool is_alone);

private:
    std::shared_ptr<Pool> pool_;
    const Kernels& kernels_;
    std::vector<std::unique_ptr<Step>> steps_;
    std::vector<IndexCheck> index_checks_;
    std::vector<TableCheck> table_checks_;
};

}  // namespace cpu
