// A known amount of work on one thread, for a tool that counts instructions: one layer's worth of every op for a small
// model of the llama kind, per type, for one token, for one token of each of 16 sequences, and for a prompt of 64.
//
//   kernel_work avx2
//
// Prints a line "op type phase n_tokens" per case and runs each inside work_case(), one call per case, in this order:
// so that `valgrind --tool=callgrind --toggle-collect=work_case --dump-after=work_case` gives one count per line.

#include <functional>
#include <vector>

#include "isa.hpp"
#include "problems.hpp"

extern "C" __attribute__((noinline)) void work_case(const std::function<void()>& work) {
    work();
    asm volatile("" ::: "memory");  // not a tail call: the tool counts until this returns
}

namespace native {
namespace {

struct Phase {
    const char* name;
    int64_t n_tokens, n_visible;
};

constexpr Phase kPhases[] = {{"decode", 1, 512}, {"decode16", 16, 128}, {"prompt", 64, 64}};
constexpr int64_t kEmbd = 512, kFf = 1536, kHeadDim = 64, kHeads = 8, kHeadsKv = 2;

void run_case(const char* op, const char* type, const Phase& phase, const std::function<void()>& work) {
    std::printf("%s %s %s %lld\n", op, type, phase.name, static_cast<long long>(phase.n_tokens));
    work_case(work);
}

// All products of a layer: activations are quantised once per input, here with the first of each.
void products(const cpu::Kernels& kernels, const Format& format, const Phase& phase) {
    const int64_t sizes[][2] = {
        {kEmbd, (kHeads + 2 * kHeadsKv) * kHeadDim}, {kHeads * kHeadDim, kEmbd}, {kEmbd, 2 * kFf}, {kFf, kEmbd}};
    std::vector<MatmulProblem> problems;
    for (const auto& [n_in, n_out] : sizes)
        problems.emplace_back(Random(1), format, phase.n_tokens, n_in, n_out, Place::AtStart);
    const Buffer<float> out(phase.n_tokens * 2 * kFf, Place::AtStart);
    run_case("matmul", format.name, phase, [&] {
        for (const MatmulProblem& problem : problems) {
            problem.quantize(kernels);
            problem.multiply(kernels, out, 0, problem.n_out);
        }
    });
}

void attention(const cpu::Kernels& kernels, bool is_half, const Phase& phase) {
    const AttentionProblem problem(Random(2), {phase.n_tokens, kHeads, kHeadsKv, kHeadDim, phase.n_visible, 0, 0.0f},
                                   is_half, Place::AtStart);
    const Buffer<float> out(phase.n_tokens * kHeads * kHeadDim, Place::AtStart);
    run_case("attention", is_half ? "F16" : "F32", phase, [&] { problem.run(kernels, out); });
}

void store(const cpu::Kernels& kernels, bool is_half, const Phase& phase) {
    const StoreProblem problem(Random(3), phase.n_tokens, kHeadsKv, kHeadDim, true, is_half, Place::AtStart);
    const Buffer<uint8_t> k_state(problem.state_bytes(), Place::AtStart), v_state(k_state.size(), Place::AtStart);
    run_case("store_kv", is_half ? "F16" : "F32", phase, [&] { problem.run(kernels, k_state, v_state); });
}

void others(const cpu::Kernels& kernels, const Phase& phase) {
    const int64_t n = phase.n_tokens;
    const Buffer<float> out(n * kFf, Place::AtStart);
    const NormProblem norm(Random(4), n, kEmbd, Place::AtStart);
    run_case("rms_norm", "F32", phase, [&] { norm.run(kernels, out); });
    const RopeProblem rope(Random(5), n, kHeads, kHeadDim, kHeadDim / 2, true, Place::AtStart);
    run_case("rope", "F32", phase, [&] { rope.run(kernels, out); });
    const GateProblem gate(Random(6), n * kFf, Place::AtStart);
    run_case("swiglu", "F32", phase, [&] { gate.run(kernels, out, 0, out.size()); });
    const RowsProblem rows(Random(7), kFormats[14], n, kEmbd, 8, Place::AtStart);
    run_case("rows", "Q6_K", phase, [&] { rows.run(kernels, out); });
}

int main_of(const char* name) {
    for (const cpu::Kernels* kernels : cpu::available_kernels()) {
        if (std::strcmp(kernels->name, name) != 0) continue;
        for (const Phase& phase : kPhases) {
            for (const Format& format : kFormats) products(*kernels, format, phase);
            for (const bool is_half : {false, true}) attention(*kernels, is_half, phase);
            for (const bool is_half : {false, true}) store(*kernels, is_half, phase);
            others(*kernels, phase);
        }
        return 0;
    }
    std::fprintf(stderr, "no instruction set \"%s\" here\n", name);
    return 2;
}

}  // namespace
}  // namespace native

int main(int argc, char** argv) { return native::main_of(argc == 2 ? argv[1] : ""); }
