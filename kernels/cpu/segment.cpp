#include "segment.hpp"

#include <algorithm>
#include <stdexcept>

namespace cpu {
namespace {

[[noreturn]] void refuse(const std::string& name, int64_t at, int64_t value, int64_t first, int64_t stop) {
    throw std::invalid_argument("input " + name + ": value " + std::to_string(value) + " at " + std::to_string(at) +
                                " is outside " + std::to_string(first) + ".." + std::to_string(stop - 1));
}

void verify(const std::string& name, const int32_t* data, int64_t n, int64_t first, int64_t stop) {
    for (int64_t i = 0; i < n; i++) {
        if (data[i] < first || data[i] >= stop) refuse(name, i, data[i], first, stop);
    }
}

void verify(TableCheck& check, const Values& values) {
    const int64_t n = value_of(check.n, values), n_seqs = value_of(check.n_seqs, values);
    const int64_t n_pages = value_of(check.n_pages, values), n_cell_pages = check.n_cells / check.page_size;
    verify(check.rows_name, check.rows, n, 0, n_seqs);
    verify(check.visible_name, check.n_visible, n, 1, n_pages * check.page_size + 1);
    std::fill_n(check.most_visible.begin(), n_seqs, 0);
    for (int64_t i = 0; i < n; i++) {
        int64_t& most = check.most_visible[static_cast<size_t>(check.rows[i])];
        most = std::max<int64_t>(most, check.n_visible[i]);
    }
    for (int64_t seq = 0; seq < n_seqs; seq++) {
        const int64_t n_used = (check.most_visible[static_cast<size_t>(seq)] + check.page_size - 1) / check.page_size;
        for (int64_t page = 0; page < n_used; page++) {
            const int64_t at = seq * n_pages + page, value = check.tables[at];
            if (value < 0 || value >= n_cell_pages) refuse(check.tables_name, at, value, 0, n_cell_pages);
        }
    }
}

struct Run {
    const Kernels& kernels;
    const std::vector<std::unique_ptr<Step>>& steps;
    const Values& values;
    Pool& pool;
};

void execute(const void* context, const PoolThread& thread) {
    const Run& run = *static_cast<const Run*>(context);
    for (const std::unique_ptr<Step>& step : run.steps) {
        for (int phase = 0; phase < step->n_phases(); phase++) {
            step->run(run.kernels, run.values, phase, thread);
            run.pool.barrier();
        }
    }
}

}  // namespace

void Segment::run(const Values& values, bool is_alone) {
    for (const IndexCheck& check : index_checks_)
        verify(check.name, check.data, value_of(check.n, values), 0, value_of(check.limit, values));
    for (TableCheck& check : table_checks_) verify(check, values);
    const Run run{kernels_, steps_, values, *pool_};
    pool_->run(execute, &run, is_alone);
}

}  // namespace cpu
