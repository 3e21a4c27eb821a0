// What an instruction set provides. Plain pointers only: nothing here knows Python or torch.
#pragma once
#include <cstddef>
#include <cstdint>

#include "formats.h"

namespace m7b {

constexpr int LEVELS = 16;     // of a weight as bitsandbytes holds it, whose scale is that of LEVELS_BLOCK values
constexpr int LEVELS_BLOCK = 64;
constexpr int MAX_TOKENS = 16; // tokens that one panel kernel works on
constexpr int ROWS = 8;        // rows of a bfloat16 weight that one kernel reads at once, each a stream of its own
constexpr int FEW_TOKENS = 8;  // up to here reading weights and keys takes longer than multiplying by them
constexpr int DENSE_ROWS = 64; // for many tokens: DENSE_DEPTH columns of them stay in the cache, widened and turned
constexpr int DENSE_DEPTH = 512;
constexpr int MAX_ROWS = 8;    // queries that one attention kernel works on
constexpr int PART = 128;      // slots that it scores before it weighs their values
constexpr float SMALLEST = 1e-30f; // activations below it count as 0: their inverse would overflow

enum DType { F32 = 0, BF16 = 1 };

// What a ring holds of a key or a value of D numbers: bfloat16, or quants of 8 bits, each KV_ZERO more than it stands
// for, and behind them the scale of each BLOCK of them in bfloat16. The last block may be shorter.
enum KvType { KV_BF16 = 0, KV_Q8_0 = 1 };
constexpr int KV_ZERO = 128;
constexpr int kv_blocks(int D) { return (D + BLOCK - 1) / BLOCK; }
constexpr size_t kv_bytes(int type, int D) { return type == KV_Q8_0 ? size_t(D) + 2 * kv_blocks(D) : 2 * size_t(D); }
// Of the keys of a part that are turned: bfloat16 (D, PART), or signed quants (D, PART) and float32 scales (blocks, PART).
constexpr size_t turned_bytes(int type, int D) {
    return PART * (type == KV_Q8_0 ? size_t(D) + 4 * kv_blocks(D) : 2 * size_t(D));
}

// Activations of n tokens, quantized under one scale a block: block b of token i is at b * n + i. Those of 16 bits
// stand as the instruction set wants them: here in the order 0 2 1 3 of each four, as the weights' bytes come apart into
// pairs of 16 bits, there as low and high bytes.
struct Tile {
    const int8_t *quants; // activation_bytes(type) each
    const float *scales;
    // Of quants of 8 bits: -8 times the sum of the 32, the same of the first 16 and of the others; the scale times
    // these sums.
    const int32_t *offsets, *half_offsets;
    const float *sums, *half_sums;

    // What begins with the n-th block.
    Tile from(size_t n, int n_bytes) const {
        return {quants + n * BLOCK * n_bytes, scales + n, offsets + n, half_offsets + 2 * n, sums + n, half_sums + 2 * n};
    }
};

// How many of the tokens that are left a kernel takes, and by how many panels it multiplies them at once, each a stream
// of its own: as many as registers hold the sums of.
constexpr int tile_size(int n_left) {
    return n_left >= MAX_TOKENS ? MAX_TOKENS : n_left < FEW_TOKENS ? n_left : FEW_TOKENS;
}
constexpr int at_once(int n_tokens) { return n_tokens <= 4 ? 4 : n_tokens <= FEW_TOKENS ? 2 : 1; }

// at_once(n) panels, `distance` bytes from each other, times the n tokens of a tile: out is (at_once(n), n, 16).
using Linear = void (*)(const uint8_t *panels, size_t distance, int n_blocks, const Tile &tile, float *out);
// Those of one block type by n, null where there is no such tile.
struct Linears {
    Linear of[MAX_TOKENS + 1];
};
// n_panels panels, one behind the other, times n_tiles tiles of 16 tokens, where those of 16 bits are 32 low bytes,
// then 32 high ones; out is (n_panels, n_tiles * 16, 16).
using LinearTiles = void (*)(const uint8_t *panels, int n_panels, int n_blocks, const Tile &tokens, int n_tiles, float *out);

// Which slots of a ring a query sees: [from[0], to[0]) and, where it goes on behind the end, [from[1], to[1]) above.
struct Visible {
    int from[2], to[2];
};

// Some rows of queries that share a kv head, over slots [begin, end) of its ring, at most a part, which `begin` starts.
struct Attention {
    const float *queries;    // (rows, D), scaled by 1 / sqrt(D)
    int kv_type;
    const uint8_t *keys, *values; // (S, kv_bytes)
    const uint8_t *turned;   // null, or the keys of each part turned, (S / PART, turned_bytes), for many queries
    Visible visible[MAX_ROWS];
    int rows, head_dim, begin, end;
    bool resumes; // what was found in earlier parts stands below
    float *top, *total, *mixed; // (rows,), (rows,), (rows, D): largest score, sum of weights, weighted values
};

// What values are rounded to: the whole numbers from low to high, or IQ4_LEVELS.
struct Grid {
    float low, high;
    bool has_levels;
};
// A value stands for scale * quant + offset.
struct Line {
    float scale, offset;
};
// Weighted sums over values, their quants q under a line and what these leave of them, r.
struct Sums {
    float qq, q, rq, r, rr;
};

struct Kernels {
    const char *name;
    // n values from bfloat16 and to it.
    void (*widen)(const uint16_t *x, size_t n, float *out);
    void (*narrow)(const float *x, size_t n, uint16_t *out);
    // LEVELS_BLOCK values, the first of two in the high half of a byte, to bfloat16.
    void (*widen_levels)(const uint8_t *quants, float scale, const float *levels, uint16_t *out);
    // 32 values to quants, scale and the sums of the first 16 quants and of the others.
    void (*quantize_block)(const float *x, int8_t *quants, float *scale, int32_t *sums);
    void (*quantize_block_16)(const float *x, int16_t *quants, float *scale);
    // n values, a multiple of 16, rounded to the grid under a line, each of the sums by its weight.
    void (*measure_line)(const float *x, const float *weights, int n, Line line, const Grid &grid, Sums *sums);
    // Null, or puts the quants (n, BLOCK) of n tokens, n_bytes each, where the linears want them.
    void (*pair)(int8_t *quants, int n, int n_bytes);
    const Linears *linears;          // by block type
    const LinearTiles *linear_tiles; // null, or by block type
    // ROWS rows of bfloat16 weights, `stride` apart, times x (n, in), n at most 4: out is (n, ROWS).
    void (*linear_bf16)(const uint16_t *weight, size_t stride, int in, const float *x, int n, float *out);
    // Null, or for many tokens: at most DENSE_ROWS such rows times tiles of dense_tokens tokens, each
    // (depth, dense_tokens), for at most DENSE_DEPTH columns: added to out (n_tiles * dense_tokens, DENSE_ROWS).
    void (*linear_dense)(const uint16_t *weight, size_t stride, int n_rows, int depth, const float *tiles, int n_tiles,
                         float *out);
    int dense_tokens;
    void (*attend)(const Attention &work);
    // y = x / rms(x) rounded to `dtype`, times the weight.
    void (*rms_norm)(const float *x, const float *weight, int dim, float eps, bool rounds, float *y);
    void (*add)(uint16_t *h, const uint16_t *y, size_t n); // h += y, both bfloat16
    void (*swiglu)(const float *gate, const float *up, int n, float *y);
    uint64_t (*sum_bytes)(const uint8_t *bytes, size_t n);
    // y (n,) += by (n_rows,) times rows of bfloat16, `stride` apart.
    void (*add_rows)(const uint16_t *rows, size_t stride, int n_rows, const float *by, int n, float *y);
};

extern const Kernels portable_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const Kernels avx512vnni_kernels;
extern const Linears *const avx512vnni_linears_ahead; // its linears, where asking ahead helps one token too
#endif
#if defined(__aarch64__)
extern const Kernels neon_kernels;
// Where the compiler knows the instructions.
#if !defined(__clang__) || __clang_major__ >= 16 || (defined(__apple_build_version__) && __clang_major__ >= 15)
#define M7B_HAS_DOTPROD
#define M7B_HAS_I8MM
extern const Kernels dotprod_kernels, i8mm_kernels;
#endif
#endif
#if defined(__x86_64__) && defined(__linux__) && defined(__has_include)
#if __has_include(<amxint8intrin.h>)
#define M7B_HAS_AMX
const Kernels &amx_kernels();
bool may_use_tiles(); // asks the system; of a processor with AMX only
#endif
#endif

} // namespace m7b
