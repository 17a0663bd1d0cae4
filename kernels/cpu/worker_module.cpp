// The Python face of the worker.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "worker.hpp"
#include "worker_module.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace cpu {
namespace {

using Rows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
// (params, position, history, n_logprobs)
using DrawIn = std::tuple<const SamplingParams*, uint64_t, std::vector<int32_t>, int64_t>;
// (token, logprobs are finite, log-probability of the token, the likeliest with theirs)
using DrawnOut = std::tuple<int64_t, bool, double, std::vector<std::pair<int64_t, double>>>;

void start(Worker& worker, std::vector<std::pair<Segment*, Values>> segments, Rows logits, std::vector<DrawIn> draws,
           bool is_alone) {
    if (logits.shape(0) != draws.size()) throw nb::value_error("there must be a draw for each row of logits");
    Job job{std::move(segments), logits.data(), static_cast<int64_t>(logits.shape(1)), {}, is_alone};
    for (auto& [params, position, history, n_logprobs] : draws) {
        job.draws.push_back({*params, std::move(history), n_logprobs});
        job.draws.back().params.position = position;
    }
    const nb::gil_scoped_release release;
    worker.start(std::move(job));
}

std::vector<DrawnOut> take(Worker& worker) {
    std::vector<DrawnOut> out;
    for (Drawn& drawn : worker.take())
        out.emplace_back(drawn.token, drawn.logprobs.is_finite, drawn.logprobs.chosen, std::move(drawn.logprobs.top));
    return out;
}

}  // namespace

void bind_worker(nb::module_& m) {
    nb::class_<Worker>(m, "Worker")
        .def(nb::init<std::shared_ptr<Pool>>(), "pool"_a)
        .def_prop_ro("fd", &Worker::fd)
        .def_prop_ro("compute_s", &Worker::compute_s)
        .def("start", &start, "segments"_a, "logits"_a, "draws"_a, "is_alone"_a)
        .def("take", &take);
}

}  // namespace cpu
