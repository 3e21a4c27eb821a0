// Whole operations over torch's tensors, given as pointers: what the Python module calls.
#pragma once
#include "choice.h"

namespace m7b {

// An array of float32 or bfloat16.
struct Array {
    void *data;
    int dtype;
};

// (n_rows, n_in) to GGUF's blocks. Q4_0, Q4_1 and Q8_0 are rounded as llama.cpp rounds them; other types, and Q4_0 and
// Q4_1 with `importance` (n_in,), get the scales that leave the least squared error that a search finds, each column's
// weighted by its importance.
void quantize(int type, Array x, int n_rows, int n_in, const float *importance, uint8_t *blocks, int n_threads);
// GGUF's blocks of `n_rows` rows to panels; rows up to a multiple of 16 are filled with zeros.
void pack(int type, const uint8_t *blocks, int n_rows, int n_in, uint8_t *panels, int n_threads);
// GGUF's blocks to numbers.
void widen(int type, const uint8_t *blocks, size_t n_blocks, float *values, int n_threads);
// Some rows (n,) of panels to y (n, n_in).
void look_up(int type, const uint8_t *panels, int n_in, const int64_t *rows, int n, Array y, int n_threads);
// Packed weights, and where x (T, n_in) times them goes: (T, n_out) in the dtype of x.
struct Weight {
    int type;
    const uint8_t *panels;
    int n_out;
    void *y;
};
// Weights of one x in one go: its tokens are quantized once, and the threads wait for each other once.
void linear(const Weight *weights, int n_weights, Array x, int T, int n_in, int n_threads);
// x (T, n_in) to y (T, n_out).
void linear_bf16(const uint16_t *weight, Array x, int T, int n_in, int n_out, Array y, int n_threads);
// Weights of 16 levels (n_out, n_in) as bitsandbytes holds them, the product of which is that of their bfloat16s.
struct LevelWeight {
    const uint8_t *quants;
    const float *scales, *levels;
};
void linear_levels(const LevelWeight &weight, Array x, int T, int n_in, int n_out, Array y, int n_threads);
// `n` tokens of one sequence, at positions [first, first + n): seven numbers of 64 bits, as Python writes them.
struct Span {
    uint8_t *const *rings; // of each layer, the keys and the values (K, capacity, kv_bytes); position p is in slot p % capacity
    int64_t capacity, first, n;
    int64_t window;    // a token sees itself and window - 1 before it; 0: all before it
    int64_t is_prompt; // these are read, not generated
    int64_t kv_type;   // a KvType
};
struct Heads {
    int H, K, D;
};
// Writes keys and values (N, K, D) bfloat16 of all tokens of the spans, one span behind the other, into the rings of
// `layer`, and lets each token attend to what it sees. Queries are (N, H, D) and may be where `out` goes.
void attend(Array queries, const uint16_t *keys, const uint16_t *values, const Span *spans, int n_spans, int layer,
            Heads heads, Array out, int n_threads);
void rms_norm(Array x, Array weight, int T, int dim, float eps, Array y, int n_threads);
// x (T, heads, D) turned by cos and sin (T, D / 2) float32, pair i being values i and i + D / 2.
void rotate(Array x, const float *cos, const float *sin, int T, int heads, int D, Array y, int n_threads);
// h += y, both bfloat16.
void add(uint16_t *h, const uint16_t *y, size_t n, int n_threads);
void swiglu(Array gate, Array up, size_t n, Array y, int n_threads);
// Asks the system for large pages, before anything is written: reading them all takes a twentieth less time.
void prefer_large_pages(void *memory, size_t n);
uint64_t sum_bytes(const uint8_t *bytes, size_t n, int n_threads);

} // namespace m7b
