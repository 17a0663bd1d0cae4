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

// 256 activations as int8: x = d * q.  Sums are of d * q, for weights with a minimum or an offset.
struct ActGroup {
    static constexpr int kSize = 256;
    int8_t q[256];
    float d[8];  // scale of each 32
    float sum_32[8];
    float d_16[16];  // the same scales, once per 16
    float sum_16[16];
};

struct MatmulArgs {
    const float* x;        // [n, n_in]
    const ActGroup* acts;  // [n, ceil(n_in / 256)] when the weight is quantised
    const uint8_t* weight;
    const uint8_t* bias;  // [n_out] f32 or null
    const float* residual;
    float* out;  // [n, n_out]
    int64_t n, n_in, n_out;
    DType dtype;
};

struct RowsArgs {
    const uint8_t* table;
    const int32_t* ids;
    float* out;
    int64_t width;
    DType dtype;
};

struct NormArgs {
    const float* x;
    const uint8_t* weight;
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

struct StoreArgs {
    const float *k, *v;
    const int32_t *positions, *cells;
    uint8_t *k_state, *v_state;
    int64_t n, n_head, head_dim;
    bool is_half, is_rotated;
    Rotation rotation;
};

struct AttentionArgs {
    const float* q;
    const uint8_t *k_state, *v_state;
    const int32_t *tables, *rows, *n_visible;
    float* out;
    int64_t n_head, n_kv, head_dim, page_size, n_pages, window;
    float scale, softcap;
    bool is_half;
};

constexpr int64_t kAttentionCells = 32;  // cells between two rescalings of the online softmax

// Floats of scratch that one thread needs for a group of query heads.
constexpr int64_t attention_scratch(int64_t n_group, int64_t head_dim) {
    const int64_t padded = (head_dim + 15) / 16 * 16;
    return n_group * (2 * padded + kAttentionCells + 2);
}

constexpr int kReadStep = 256;  // bytes between two looks at the end of a read

// Measurements of the instruction set itself, see limits.inc.
struct Limits {
    int64_t (*int8_chain)(int64_t n_rounds);  // products done
    int64_t (*f32_chain)(int64_t n_rounds);
    uint64_t (*read_words)(const uint8_t* data, int64_t n_bytes);
};

struct Kernels {
    const char* name;
    // units: groups of 256, counted through all rows of x
    void (*quantize)(const float* x, ActGroup* out, int64_t n_in, int64_t begin, int64_t end);
    void (*matmul)(const MatmulArgs&, int64_t begin, int64_t end);  // rows of the weight
    void (*rows)(const RowsArgs&, int64_t begin, int64_t end);      // ids
    void (*dequantize)(const uint8_t* raw, float* out, int64_t n, DType);
    void (*rms_norm)(const NormArgs&, int64_t begin, int64_t end);          // chunks
    void (*rope)(const RopeArgs&, int64_t begin, int64_t end);              // heads, counted through all rows
    void (*store_kv)(const StoreArgs&, int64_t begin, int64_t end);         // heads: each thread writes its own columns
    void (*attention)(const AttentionArgs&, int64_t item, float* scratch);  // row * n_kv + kv head
    void (*swiglu)(const float* gate, const float* up, float* out, int64_t begin, int64_t end);
    Limits limits;
};

extern const Kernels kGeneric, kAvx512Emulated;
#if defined(KERNELS_X86)
extern const Kernels kAvx2, kAvx512;
#endif

}  // namespace cpu
