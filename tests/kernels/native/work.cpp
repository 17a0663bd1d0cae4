// A known amount of work on one thread, for a tool that counts instructions: one layer's worth of every op for a small
// model of the llama kind, per type, for one token and for a prompt of 64.
//
//   kernel_work avx2
//   kernel_work compiler   prints what made this, such as "gcc 12": other compilers make other instructions
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
    int64_t n_tokens, n_before;
};

constexpr Phase kPhases[] = {{"decode", 1, 511}, {"prompt", 64, 0}};
constexpr int64_t kEmbd = 256, kFf = 768, kHeadDim = 64, kHeads = 4, kHeadsKv = 2;

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

void attention(const cpu::Kernels& kernels, cpu::DType dtype, const Phase& phase) {
    const AttentionShape shape{phase.n_tokens, kHeads, kHeadsKv, kHeadDim, phase.n_before, 32, {0, 0}, 0.0f};
    const AttentionProblem problem(Random(2), shape, dtype, Place::AtStart);
    const Buffer<float> out(problem.out_n(), Place::AtStart);
    constexpr int64_t max_rows = cpu::kAttentionQueries * kHeadsKv / kHeads;
    run_case("attention", name_of(dtype), phase, [&] { problem.run(kernels, out, max_rows); });
}

void store(const cpu::Kernels& kernels, cpu::DType dtype, const Phase& phase) {
    const StoreProblem problem(Random(3), phase.n_tokens, {kHeadsKv, kHeadDim, 32, dtype}, true, Place::AtStart);
    const Buffer<uint8_t> k_state(problem.state_bytes(), Place::AtStart), v_state(k_state.size(), Place::AtStart);
    run_case("store_kv", name_of(dtype), phase, [&] { problem.run(kernels, k_state, v_state); });
}

void others(const cpu::Kernels& kernels, const Phase& phase) {
    const int64_t n = phase.n_tokens;
    const Buffer<float> out(n * kFf, Place::AtStart);
    for (const bool has_residual : {false, true}) {
        const NormProblem norm(Random(4), n, kEmbd, has_residual, Place::AtStart);
        run_case(has_residual ? "rms_norm_add" : "rms_norm", "F32", phase, [&] { norm.run(kernels, out); });
    }
    const RopeProblem rope(Random(5), n, kHeads, kHeadDim, kHeadDim / 2, true, Place::AtStart);
    run_case("rope", "F32", phase, [&] { rope.run(kernels, out); });
    for (const GateKind& kind : kGates) {
        const GateProblem gate(Random(6), n * kFf, kind, Place::AtStart);
        run_case("gate", kind.name, phase, [&] { gate.run(kernels, out); });
    }
    const SoftCapProblem softcap(Random(8), n * kFf, Place::AtStart);
    run_case("softcap", "F32", phase, [&] { softcap.run(kernels, out); });
    const ConvProblem conv(Random(9), n, kEmbd, 3, Place::AtStart);
    run_case("short_conv", "F32", phase, [&] { conv.run(kernels, conv.before, out); });
    const RowsProblem rows(Random(7), kFormats[14], n, kEmbd, 8, Place::AtStart);
    run_case("rows", "Q6_K", phase, [&] { rows.run(kernels, out); });
}

int main_of(const char* name) {
    if (std::strcmp(name, "compiler") == 0) {
#if defined(__clang__)
        std::printf("clang %d\n", __clang_major__);
#else
        std::printf("gcc %d\n", __GNUC__);
#endif
        return 0;
    }
    for (const cpu::Kernels* kernels : cpu::available_kernels()) {
        if (std::strcmp(kernels->name, name) != 0) continue;
        for (const Phase& phase : kPhases) {
            for (const Format& format : kFormats) products(*kernels, format, phase);
            for (const cpu::DType dtype : kCacheTypes) attention(*kernels, dtype, phase);
            for (const cpu::DType dtype : kCacheTypes) store(*kernels, dtype, phase);
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
