// Compares instruction sets with the portable path, op by op and type by type, where there may be no Python: on
// another processor, in an emulator.
//
//   kernel_check           every instruction set that this machine has
//   kernel_check neon      that one; it is an error if it is not there
//
// One line per op and type.  Integers and dequantised weights must have the same bits; other floats differ by at most
// the printed bound in sum((got - want)^2) / sum(want^2), since the order of additions differs.  Every row must have
// the same bits alone as in a batch, and in pieces as in one.  Exit status 1 when anything is wrong.

#include <unistd.h>
#include <csignal>
#include <string>
#include <vector>

#include "isa.hpp"
#include "problems.hpp"

namespace native {
namespace {

// Where we are, for the one handler that cannot be told.
const char *current_isa = "", *current_op = "", *current_type = "";

class Report {
public:
    Report(const cpu::Kernels& isa, const char* op, const char* type, double bound)
        : isa_(isa.name), op_(op), type_(type), bound_(bound) {
        current_isa = isa_, current_op = op_, current_type = type_;
    }
    void bits(const void* got, const void* want, size_t n_bytes, const char* what) {
        n_++;
        if (std::memcmp(got, want, n_bytes) != 0) fail(what);
    }
    void close(const Buffer<float>& got, const Buffer<float>& want) {
        n_++;
        double error = 0.0, power = 0.0;
        for (int64_t i = 0; i < want.size(); i++) {
            const double difference = static_cast<double>(got[i]) - static_cast<double>(want[i]);
            error += difference * difference;
            power += static_cast<double>(want[i]) * static_cast<double>(want[i]);
        }
        const double nmse = power > 0.0 ? error / power : error;
        if (!(nmse <= worst_)) worst_ = nmse;
        if (!(nmse <= bound_)) fail("differs from the portable path");
    }
    template <class T>
    void whole(const Buffer<T>& buffer) {
        if (!buffer.is_whole()) fail("writes outside its results");
    }
    // Prints the line; whether all was well.
    bool end() const {
        std::printf("%-4s %-16s %-10s %-7s %4d results", why_ == nullptr ? "ok" : "FAIL", isa_, op_, type_, n_);
        if (bound_ > 0.0) {
            std::printf(", nmse %.1e of %.0e", worst_, bound_);
        } else {
            std::printf(", same bits");
        }
        std::printf("%s%s\n", why_ == nullptr ? "" : ": ", why_ == nullptr ? "" : why_);
        std::fflush(stdout);
        return why_ == nullptr;
    }

    void fail(const char* why) {
        if (why_ == nullptr) why_ = why;
    }

private:
    const char *isa_, *op_, *type_, *why_ = nullptr;
    double bound_, worst_ = 0.0;
    int n_ = 0;
};

const cpu::Kernels& portable = cpu::kGeneric;

bool check_quantize(const cpu::Kernels& isa) {
    Report report(isa, "quantize", "Q8", 0.0);
    for (const Place place : kPlaces) {
        for (const int64_t n_in : {32, 96, 256, 544}) {
            const MatmulProblem problem(Random(1), kFormats[3], 3, n_in, 1, place);
            std::vector<cpu::ActGroup> want(static_cast<size_t>(problem.acts.size()));
            for (int64_t i = 32; i < 64 && n_in > 64; i++) problem.x[i] = 0.0f;
            problem.quantize(portable);
            std::memcpy(want.data(), problem.acts.data(), problem.acts.n_bytes());
            std::memset(problem.acts.data(), 0xa5, problem.acts.n_bytes());
            problem.quantize(isa);
            // of the last group of a row, only what the row fills counts; the rest is zero
            report.bits(problem.acts.data(), want.data(), problem.acts.n_bytes(), "differs from the portable path");
            report.whole(problem.acts);
        }
    }
    return report.end();
}

struct MatmulShape {
    int64_t n, blocks, n_out;  // blocks of 32 or 256, or odd numbers of plain elements
};

void check_product(Report& report, const cpu::Kernels& isa, const MatmulProblem& problem) {
    const int64_t n_out = problem.n_out;
    const Buffer<float> want(problem.n * n_out, problem.place), got(want.size(), problem.place),
        pieces(want.size(), problem.place), alone(n_out, problem.place);
    problem.quantize(portable);
    problem.multiply(portable, want, 0, n_out);
    problem.multiply(isa, got, 0, n_out);
    report.close(got, want);
    report.whole(got);
    for (int64_t begin = 0; begin < n_out; begin += cpu::kPanelRows)
        problem.multiply(isa, pieces, begin, n_out < begin + cpu::kPanelRows ? n_out : begin + cpu::kPanelRows);
    report.bits(pieces.data(), got.data(), got.n_bytes(), "differs in pieces");
    report.whole(pieces);
    for (const int64_t col : {int64_t{0}, problem.n - 1}) {
        problem.multiply_column(isa, col, alone);
        report.bits(alone.data(), got.data() + col * n_out, alone.n_bytes(), "differs alone and in a batch");
    }
}

bool check_matmul(const cpu::Kernels& isa, const Format& format) {
    constexpr MatmulShape shapes[] = {
        {1, 1, 1},  {1, 3, 16}, {2, 2, 33},  {3, 1, 17}, {4, 9, 5},  {5, 8, 64},
        {7, 3, 15}, {9, 2, 70}, {17, 1, 21}, {31, 1, 3}, {4, 130, 5}};  // more runs than alongrows.inc has room for at
                                                                        // a time
    // what sums in another order differ by: activations are quantised once
    Report report(isa, "matmul", format.name, 1e-11);
    uint64_t seed = 100;
    for (const Place place : kPlaces) {
        for (const MatmulShape& shape : shapes) {
            const int64_t n_in = format.is_quantized() ? shape.blocks * format.block_n : 37 * shape.blocks;
            check_product(report, isa, MatmulProblem(Random(seed++), format, shape.n, n_in, shape.n_out, place));
        }
    }
    return report.end();
}

bool check_scattered(const cpu::Kernels& isa, const Format& format) {
    constexpr MatmulShape shapes[] = {{1, 3, 17}, {2, 2, 33}, {4, 9, 5}, {7, 3, 70}, {19, 2, 21}};
    Report report(isa, "experts", format.name, 0.0);
    for (const Place place : kPlaces) {
        for (const MatmulShape& shape : shapes) {
            const int64_t n_in = format.is_quantized() ? shape.blocks * format.block_n : 37 * shape.blocks;
            const ScatteredProblem problem(Random(15), format, shape.n, n_in, shape.n_out, place);
            const Buffer<float> products(shape.n * shape.n_out, place), want(problem.n_rows * shape.n_out, place),
                got(want.size(), place);
            // rows that no column names stay as they are
            std::memset(want.data(), 0xa5, want.n_bytes());
            std::memset(got.data(), 0xa5, got.n_bytes());
            problem.multiply_in_order(isa, products);
            problem.scatter(products, want);
            problem.run(isa, got);
            report.bits(got.data(), want.data(), got.n_bytes(), "differs from products in order");
            report.whole(got);
        }
    }
    return report.end();
}

bool check_route(const cpu::Kernels& isa, cpu::Gating gating, const char* name) {
    Report report(isa, "route", name, 1e-13);
    for (const Place place : kPlaces) {
        for (const int64_t n_expert : {1, 7, 16, 33, 128}) {
            const int64_t n = 5, n_used = n_expert < 8 ? 1 : 8;
            const RouteProblem problem(Random(16), n, n_expert, n_used, gating, place);
            const Buffer<int32_t> want_ids(n * n_used, place), got_ids(n * n_used, place);
            const Buffer<float> want(n * n_used, place), got(n * n_used, place);
            problem.run(portable, want_ids, want);
            problem.run(isa, got_ids, got);
            report.bits(got_ids.data(), want_ids.data(), got_ids.n_bytes(), "chooses others than the portable path");
            report.whole(got_ids);
            // the first row has a NaN
            for (int64_t i = 0; i < n_used; i++) {
                if (got[i] == got[i] || want[i] == want[i]) report.fail("hides a NaN");
                got[i] = want[i] = 0.0f;
            }
            report.close(got, want);
            report.whole(got);
        }
    }
    return report.end();
}

bool check_rows(const cpu::Kernels& isa, const Format& format) {
    Report report(isa, "rows", format.name, 0.0);
    for (const Place place : kPlaces) {
        for (const int64_t blocks : {1, 3, 9, 17}) {
            const int64_t width = blocks * format.block_n;
            RowsProblem problem(Random(7), format, 4, width, 5, place);
            if (blocks == 9) problem.scale = 33.94f;
            const Buffer<float> want(4 * width, place), got(want.size(), place);
            problem.run(portable, want);
            problem.run(isa, got);
            report.bits(got.data(), want.data(), got.n_bytes(), "differs from the portable path");
            report.whole(got);
            const Buffer<float> flat(5 * width, place), flat_got(flat.size(), place);
            problem.dequantize(portable, flat);
            problem.dequantize(isa, flat_got);
            report.bits(flat_got.data(), flat.data(), flat.n_bytes(), "dequantize differs from the portable path");
            report.whole(flat_got);
        }
    }
    return report.end();
}

bool check_norm(const cpu::Kernels& isa) {
    Report report(isa, "rms_norm", "F32", 1e-13);
    for (const Place place : kPlaces) {
        for (const int64_t chunk : {1, 3, 8, 15, 64, 100, 257}) {
            const NormProblem problem(Random(8), 3, chunk, chunk % 2 == 0, place);
            const Buffer<float> want(3 * chunk, place), got(3 * chunk, place);
            problem.run(portable, want);
            problem.run(isa, got);
            report.close(got, want);
            report.whole(got);
        }
    }
    return report.end();
}

bool check_rope(const cpu::Kernels& isa) {
    Report report(isa, "rope", "F32", 1e-13);
    for (const Place place : kPlaces) {
        for (const bool is_neox : {false, true}) {
            for (const int64_t head_dim : {2, 6, 64, 80, 130}) {
                const int64_t n_pair = head_dim > 64 ? 20 : head_dim / 2;
                const RopeProblem problem(Random(9), 3, 5, head_dim, n_pair, is_neox, place);
                const Buffer<float> want(15 * head_dim, place), got(want.size(), place);
                problem.run(portable, want);
                problem.run(isa, got);
                report.close(got, want);
                report.whole(got);
            }
        }
    }
    return report.end();
}

bool check_store(const cpu::Kernels& isa, cpu::DType dtype) {
    // no instruction set contracts the rotation's products, so that even what is rounded to levels agrees
    Report report(isa, "store_kv", name_of(dtype), 0.0);
    for (const Place place : kPlaces) {
        for (const int64_t head_dim : {32, 64, 96, 160}) {
            const StoreProblem problem(Random(10), 7, {3, head_dim, 6, dtype}, head_dim % 64 == 0, place);
            const int64_t n = problem.state_bytes();
            const Buffer<uint8_t> want_k(n, place), want_v(n, place), got_k(n, place), got_v(n, place);
            problem.run(portable, want_k, want_v);
            problem.run(isa, got_k, got_v);
            report.bits(got_k.data(), want_k.data(), want_k.n_bytes(), "keys differ from the portable path");
            report.bits(got_v.data(), want_v.data(), want_v.n_bytes(), "values differ from the portable path");
            report.whole(got_k);
            report.whole(got_v);
        }
    }
    return report.end();
}

bool check_attention(const cpu::Kernels& isa, cpu::DType dtype) {
    constexpr AttentionShape shapes[] = {
        {1, 1, 1, 64, 0, 16, {0, 0}, 0.0f},       {3, 6, 2, 96, 30, 32, {0, 0}, 0.0f},
        {5, 4, 1, 128, 65, 16, {0, 0}, 0.0f},     {2, 10, 2, 32, 31, 5, {0, 0}, 30.0f},
        {4, 5, 5, 32, 100, 16, {17, 0}, 0.0f},    {7, 8, 1, 160, 90, 24, {40, 0}, 5.0f},
        {2, 6, 2, 64, 1040, 32, {0, 0}, 0.0f},    {2, 3, 1, 32, 600, 16, {520, 0}, 0.0f},
        {3, 4, 1, 256, 70, 32, {33, 0}, 0.0f},    {40, 4, 2, 64, 60, 32, {0, 24}, 0.0f},
        {70, 3, 1, 32, 1000, 16, {0, 530}, 0.0f}, {9, 4, 2, 32, 90, 32, {5, 7}, 0.0f},
        {5, 4, 2, 64, 60, 32, {0, 0}, 0.0f, 9},   {33, 3, 3, 64, 600, 16, {0, 0}, 0.0f, 128, true},
        {40, 2, 1, 32, 0, 24, {7, 0}, 0.0f, 0},   {20, 6, 2, 96, 30, 32, {0, 0}, 0.0f, -1, true},
        {1, 4, 4, 64, 700, 32, {0, 0}, 0.0f, 40},
    };
    Report report(isa, "attention", name_of(dtype), 1e-11);
    for (const Place place : kPlaces) {
        for (const AttentionShape& shape : shapes) {
            const AttentionProblem problem(Random(11), shape, dtype, place);
            const int64_t n = problem.out_n();
            const Buffer<float> want(n, place), got(n, place), alone(n, place), chunks(n, place);
            problem.run(portable, want, shape.n_rows);
            problem.run(isa, got, shape.n_rows);
            report.close(got, want);
            report.whole(got);
            problem.run(isa, alone, 1);
            report.bits(alone.data(), got.data(), got.n_bytes(), "differs row by row");
            problem.run_chunks(isa, chunks);
            report.bits(chunks.data(), got.data(), got.n_bytes(), "differs in chunks");
            report.whole(chunks);
        }
    }
    return report.end();
}

bool check_conv(const cpu::Kernels& isa) {
    Report report(isa, "short_conv", "F32", 1e-13);
    for (const Place place : kPlaces) {
        for (const int64_t width : {1, 7, 16, 33, 100}) {
            for (const int64_t n_taps : {2, 3, 16}) {
                const ConvProblem problem(Random(14), 9, width, n_taps, place);
                const int64_t n = problem.n * width, n_state = problem.before.size();
                const Buffer<float> want(n, place), got(n, place), want_state(n_state, place),
                    got_state(n_state, place);
                std::memcpy(want_state.data(), problem.before.data(), problem.before.n_bytes());
                std::memcpy(got_state.data(), problem.before.data(), problem.before.n_bytes());
                problem.run(portable, want_state, want);
                problem.run(isa, got_state, got);
                report.close(got, want);
                report.whole(got);
                report.bits(got_state.data(), want_state.data(), want_state.n_bytes(), "leaves another state");
                report.whole(got_state);
            }
        }
    }
    return report.end();
}

// An op that makes one number of one (or of two at the same place): some lengths, on both sides of a vector's.
template <class Make>
bool check_elements(const cpu::Kernels& isa, const char* op, const char* type, Make make) {
    Report report(isa, op, type, 1e-13);
    for (const Place place : kPlaces) {
        for (const int64_t n : {1, 7, 16, 33, 100}) {
            const auto problem = make(n, place);
            const Buffer<float> want(n, place), got(n, place);
            problem.run(portable, want);
            problem.run(isa, got);
            report.close(got, want);
            report.whole(got);
        }
    }
    return report.end();
}

bool check_gate(const cpu::Kernels& isa, const GateKind& kind) {
    return check_elements(isa, "gate", kind.name,
                          [&](int64_t n, Place place) { return GateProblem(Random(12), n, kind, place); });
}

bool check_slot_sum(const cpu::Kernels& isa) {
    return check_elements(isa, "slot_sum", "F32",
                          [](int64_t n, Place place) { return SlotSumProblem(Random(17), n, place); });
}

bool check_softcap(const cpu::Kernels& isa) {
    return check_elements(isa, "softcap", "F32",
                          [](int64_t n, Place place) { return SoftCapProblem(Random(13), n, place); });
}

bool check(const cpu::Kernels& isa) {
    bool is_right = check_quantize(isa);
    for (const Format& format : kFormats) is_right &= check_rows(isa, format);
    for (const Format& format : kFormats) is_right &= check_matmul(isa, format);
    for (const Format& format : kFormats) is_right &= check_scattered(isa, format);
    is_right &= check_route(isa, cpu::Gating::Softmax, "softmax");
    is_right &= check_route(isa, cpu::Gating::ChosenSoftmax, "chosen");
    is_right &= check_route(isa, cpu::Gating::Sigmoid, "sigmoid");
    is_right &= check_slot_sum(isa);
    is_right &= check_norm(isa);
    is_right &= check_rope(isa);
    for (const cpu::DType dtype : kCacheTypes) is_right &= check_store(isa, dtype);
    for (const cpu::DType dtype : kCacheTypes) is_right &= check_attention(isa, dtype);
    is_right &= check_conv(isa);
    for (const GateKind& kind : kGates) is_right &= check_gate(isa, kind);
    is_right &= check_softcap(isa);
    return is_right;
}

void on_fault(int) {
    const auto say = [](const char* text) { (void)!write(STDOUT_FILENO, text, std::strlen(text)); };
    for (const char* part : {"FAIL ", current_isa, " ", current_op, " ", current_type}) say(part);
    say(": touches memory outside its buffers\n");
    _exit(1);
}

void on_illegal(int) {
    const auto say = [](const char* text) { (void)!write(STDOUT_FILENO, text, std::strlen(text)); };
    for (const char* part : {"FAIL ", current_isa, " ", current_op, " ", current_type}) say(part);
    say(": has an instruction that this machine does not know\n");
    _exit(1);
}

int main_of(const std::vector<std::string>& wanted) {
    std::signal(SIGSEGV, on_fault);
    std::signal(SIGBUS, on_fault);
    std::signal(SIGILL, on_illegal);
    const std::vector<const cpu::Kernels*> found = cpu::available_kernels();
    std::vector<const cpu::Kernels*> chosen;
    for (const cpu::Kernels* kernels : found) {
        bool is_wanted = wanted.empty() && kernels != &portable;
        for (const std::string& name : wanted) is_wanted |= name == kernels->name;
        if (is_wanted) chosen.push_back(kernels);
    }
    if (chosen.size() < wanted.size() || chosen.empty()) {
        std::fprintf(stderr, "no such instruction set here; there are");
        for (const cpu::Kernels* kernels : found) std::fprintf(stderr, " %s", kernels->name);
        std::fprintf(stderr, "\n");
        return 2;
    }
    bool is_right = true;
    for (const cpu::Kernels* kernels : chosen) is_right &= check(*kernels);
    std::printf("%s\n", is_right ? "all right" : "wrong");
    return is_right ? 0 : 1;
}

}  // namespace
}  // namespace native

int main(int argc, char** argv) { return native::main_of({argv + 1, argv + argc}); }
