// What each instruction set provides: one function per piece of an op's work, over plain pointers.
//
// Weights and inputs of the caller may lie at any address; values, states and the workspace are aligned to
// their elements.  Functions check nothing: `segment.cpp` and `backend.py` have.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cpu {

// Numbers of the GGUF specification (ggml_type).
enum class DType : int {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    IQ4_NL = 20,
    I32 = 26,
    BF16 = 30,
    MXFP4 = 39,
};

constexpr bool is_plain(DType dtype) { return dtype == DType::F32 || dtype == DType::F16 || dtype == DType::BF16; }

// 256 activations as int8: x = d * q, q in -127..127.
struct ActGroup {
    static constexpr int kSize = 256;
    int8_t q[256];
    float d[8];               // scale of each 32
    float sum_32[8];          // of d * q, for weights with a minimum
    float sum_16[16];         // the same, of each 16
    int16_t pairs_32[8][2];   // of q: over k % 4 < 2, and over the others; for weights with an offset
    int16_t pairs_16[16][2];  // the same, of each 16
};

struct QuantizeArgs {
    const float* x;       // [.., n_in]
    const int32_t* rows;  // [n], which rows of x; null: the first n
    ActGroup* out;        // [ceil(n_in / 256), n]
    int64_t n, n_in;
};

// A thread's share of a product with few columns is a multiple of so many rows of the weight.
constexpr int64_t kPanelRows = 16;

struct MatmulArgs {
    const float* x;        // [n, n_in]
    const ActGroup* acts;  // [ceil(n_in / 256), n] when the weight is quantised
    const uint8_t* weight;
    const uint8_t* bias;  // [n_out] f32 or null
    const float* residual;
    float* out;      // [n, n_out]
    float* scratch;  // [matmul_scratch] of this thread
    int64_t n, n_in, n_out;
    DType dtype;
    // Where the rows of an expert are scattered: which row of x, and of out, a column is; null: they are in order.
    const int32_t *x_rows = nullptr, *out_rows = nullptr;
    const float* scales = nullptr;  // of each row of out, or null

    constexpr const float* x_of(int64_t col) const { return x + (x_rows != nullptr ? x_rows[col] : col) * n_in; }
    constexpr int64_t out_row(int64_t col) const { return out_rows != nullptr ? out_rows[col] : col; }
};

constexpr int64_t kFewColumns = 5;      // with fewer, memory is waited for, not arithmetic
constexpr int64_t kMatmulRows = 64;     // rows whose panels stand in the first-level cache while all columns pass
constexpr int64_t kMatmulCols = 256;    // columns whose sums stand in the second-level cache
constexpr int64_t kPanelFloats = 8192;  // panels of kMatmulRows rows by 256 columns of the weight

// Floats that one thread needs for a product with n rows of activations: sums, then panels.
constexpr int64_t matmul_scratch(int64_t n) {
    return (n < kMatmulCols ? n : kMatmulCols) * kMatmulRows + kPanelFloats + 16;
}

struct RowsArgs {
    const uint8_t* table;
    const int32_t* ids;
    float* out;
    int64_t width;
    float scale;
    DType dtype;
};

struct NormArgs {
    const float* x;
    const uint8_t* weight;  // or null
    const float* residual;  // like x, or null
    float* out;
    int64_t chunk;
    float eps;
};

struct Rotation {
    const float* inv_freq;
    int64_t n_pair;
    float magnitude;
    bool is_neox;
};

// Most pairs a head can have rotated: cos and sin of a row stand on the stack.
constexpr int64_t kMaxPairs = 1024;

struct RopeArgs {
    const float* x;
    const int32_t* positions;
    float* out;
    int64_t n_head, head_dim;
    Rotation rotation;
};

// What a state holds of one key/value head in one page, and how: kernels/ops/attention.py.
struct CacheShape {
    int64_t n_kv, head_dim, page_size;
    DType dtype;  // F32, F16 or Q8_0

    constexpr int64_t region_bytes() const {
        const int64_t n = page_size * head_dim;
        return dtype == DType::F32 ? 4 * n : dtype == DType::F16 ? 2 * n : n / 32 * 34;
    }
};

struct StoreArgs {
    const float *k, *v;
    const int32_t *positions, *cells;
    uint8_t *k_state, *v_state;
    CacheShape cache;
    bool is_rotated;
    Rotation rotation;
};

// Where what a row sees begins: after the window before its own cell, at the begin of its own cell's chunk; 0: neither
// is a bound.  The chunks of a kernel's sums (kAttentionChunk) are another thing.
struct Mask {
    int64_t window, chunk;

    // The first cell that a row sees whose own is the one before `stop`.
    constexpr int64_t start(int64_t stop) const {
        const int64_t by_window = window > 0 && stop > window + 1 ? stop - window - 1 : 0;
        const int64_t by_chunk = chunk > 0 ? (stop - 1) / chunk * chunk : 0;
        return by_window > by_chunk ? by_window : by_chunk;
    }
};

// Queries of the row whose own cell is the one before `stop` are scaled by 1 + scale * ln(1 + stop / length), the
// quotient rounded down; length 0: by 1.
struct Temperature {
    float scale;
    int64_t length;
};

// Head h adds table[clamp(cell - position, -reach, reach) + reach, h] to a row's score of a cell.
struct Bias {
    const uint8_t* table;      // [2 * reach + 1, n_head] f32, or null
    const int32_t* positions;  // [n]
    int64_t reach;
};

struct AttentionArgs {
    const float* q;
    const uint8_t *k_state, *v_state;
    const int32_t *tables, *rows, *n_visible;
    float* out;
    CacheShape cache;
    int64_t n_head, n_pages;
    Mask mask;
    float scale, softcap;
    Temperature temperature;
    Bias bias;

    constexpr int64_t n_group() const { return n_head / cache.n_kv; }
};

// Cells of one step of the online softmax, and cells whose steps make one partial result.  Both are counted from
// a sequence's first cell, so that neither batch nor threads decide where a row's sums are cut.
constexpr int64_t kAttentionStep = 32, kAttentionChunk = 512;
// Queries (row and head) that one item works on: keys and values are unpacked once for all of them.
constexpr int64_t kAttentionQueries = 96;

constexpr int64_t whole_vectors(int64_t n) { return (n + 15) / 16 * 16; }

// Rows of one sequence at one key/value head: all see as many cells, or each sees one more than the one before.
struct AttentionItem {
    int64_t row, n_rows, kv;
    int64_t chunk;   // the only one to work on, or -1
    float* partial;  // of that chunk
};

// Floats that a head's bias needs there: one for each distance, and a step's at either end.
constexpr int64_t bias_floats(int64_t reach) { return 2 * (reach + kAttentionStep); }

// Floats that n_queries queries need while they are worked on, on one thread; n_bias: for biases.
constexpr int64_t attention_scratch(const CacheShape& cache, int64_t n_queries, int64_t n_bias) {
    const int64_t padded = whole_vectors(cache.head_dim);
    const int64_t spare = 12;  // queries: tiles are whole
    const int64_t queries = n_queries * (2 * padded + kAttentionStep + 20) + spare * (padded + kAttentionStep);
    const int64_t quantized =
        cache.dtype == DType::Q8_0 ? n_queries * (padded / 4 + padded / 32 + kAttentionStep + 1) : 0;
    // keys and values of one step as floats, and their bytes gathered where pages do not hold whole steps
    return whole_vectors(queries) + whole_vectors(quantized) + 4 * kAttentionStep * padded + whole_vectors(n_bias);
}

// Floats of one chunk's result: for each query of the group its values, their scale's exponent, and their weight.
constexpr int64_t attention_partial(int64_t n_group, int64_t head_dim) { return n_group * (head_dim + 2); }

// Taps that a convolution has at most: a step keeps them and as many inputs in registers or on the stack.
constexpr int64_t kMaxTaps = 16;

struct ConvArgs {
    const float* x;  // [n, 3 * width]
    const uint8_t* weight;
    float* state;
    const int32_t *rows, *sources, *targets;
    float* out;
    int64_t n, width, n_taps;
};

enum class Activation : int { Silu, Gelu, Relu };

struct GateArgs {
    const float *gate, *up;  // up: or null
    float* out;
    Activation activation;
};

enum class Gating : int { Softmax, ChosenSoftmax, Sigmoid };

struct RouteArgs {
    const float* logits;  // [n, n_expert]
    int32_t* ids;         // [n, n_used]
    float* weights;       // [n, n_used]
    int64_t n_expert, n_used;
    Gating gating;
};

struct SlotSumArgs {
    const float* x;         // [n, n_slot * width]
    const float* residual;  // like out, or null
    float* out;             // [n, width]
    int64_t n_slot, width;
};

struct SoftCapArgs {
    const float* x;
    float* out;
    float cap;
};

constexpr int kReadStep = 256;  // bytes between two looks at the end of a read

// Measurements of the instruction set itself, see limits.inc.
struct Limits {
    int64_t (*int8_chain)(int64_t n_rounds);  // products done
    int64_t (*f32_chain)(int64_t n_rounds);
    uint64_t (*read_words)(const uint8_t* data, int64_t n_bytes);
};

struct Kernels {
    const char* name;
    // units: groups of 256, the first of every row before the second of any
    void (*quantize)(const QuantizeArgs&, int64_t begin, int64_t end);
    void (*matmul)(const MatmulArgs&, int64_t begin, int64_t end);  // rows of the weight
    void (*rows)(const RowsArgs&, int64_t begin, int64_t end);      // ids
    void (*dequantize)(const uint8_t* raw, float* out, int64_t n, DType);
    void (*rms_norm)(const NormArgs&, int64_t begin, int64_t end);   // chunks
    void (*rope)(const RopeArgs&, int64_t begin, int64_t end);       // heads, counted through all rows
    void (*store_kv)(const StoreArgs&, int64_t begin, int64_t end);  // heads, counted through all rows
    void (*attention)(const AttentionArgs&, const AttentionItem&, float* scratch);
    // the partial results of all chunks of a row, in order, to its output
    void (*merge_chunks)(const AttentionArgs&, int64_t row, int64_t kv, const float* partials);
    void (*short_conv)(const ConvArgs&, int64_t begin, int64_t end);   // channels
    void (*gate)(const GateArgs&, int64_t begin, int64_t end);         // elements
    void (*softcap)(const SoftCapArgs&, int64_t begin, int64_t end);   // elements
    void (*route)(const RouteArgs&, int64_t begin, int64_t end);       // rows
    void (*slot_sum)(const SlotSumArgs&, int64_t begin, int64_t end);  // rows
    Limits limits;
};

extern const Kernels kGeneric, kAvx512Emulated;
#if defined(KERNELS_X86)
extern const Kernels kAvx2, kAvxVnni, kAvx512;
#elif defined(KERNELS_ARM)
extern const Kernels kNeon;
#endif

}  // namespace cpu
