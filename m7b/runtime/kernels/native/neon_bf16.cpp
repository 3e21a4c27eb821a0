// ARM with products of matrices of bfloat16, for many tokens; everything else is done as neon_i8mm.cpp does it.
#include "kernels.h"
#if defined(M7B_HAS_BF16)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("bf16"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+bf16")
#endif
#include <arm_neon.h>

namespace m7b {
namespace {

constexpr int TOKENS = 8;       // of a tile
constexpr int SIDE_BY_SIDE = 8; // rows

inline bfloat16x8_t load(const uint16_t *x) { return vreinterpretq_bf16_u16(vld1q_u16(x)); }

// Four columns of two rows in a vector, those of SIDE_BY_SIDE rows one behind the other: (DENSE_ROWS / SIDE_BY_SIDE,
// depth / 4, SIDE_BY_SIDE, 4). Rows beyond `n_rows` and columns beyond `depth` are 0.
void interleave_rows(const uint16_t *weight, size_t stride, int n_rows, int depth, uint16_t *out) {
    const int n_steps = (depth + 3) / 4;
    for (int r = 0; r < DENSE_ROWS; r++) {
        uint16_t *to = out + (r / SIDE_BY_SIDE * size_t(n_steps) * SIDE_BY_SIDE + r % SIDE_BY_SIDE) * 4;
        const uint16_t *row = weight + r * stride;
        for (int step = 0; step < n_steps; step++, to += 4 * SIDE_BY_SIDE) {
            if (r < n_rows && 4 * step + 4 <= depth) vst1_u16(to, vld1_u16(row + 4 * step));
            else
                for (int k = 0; k < 4; k++) to[k] = r < n_rows && 4 * step + k < depth ? row[4 * step + k] : uint16_t(0);
        }
    }
}

// Rows that were interleaved times a tile of tokens.
void add_tile(const uint16_t *rows, const uint16_t *tile, int n_steps, float *out) {
    float32x4_t sums[TOKENS / 2][SIDE_BY_SIDE / 2]; // of two tokens and two rows each: the first token's, the second's
    for (int i = 0; i < TOKENS / 2; i++)
        for (int r = 0; r < SIDE_BY_SIDE / 2; r++) {
            const float *at = out + 2 * i * DENSE_ROWS + 2 * r;
            sums[i][r] = vcombine_f32(vld1_f32(at), vld1_f32(at + DENSE_ROWS));
        }
    for (int step = 0; step < n_steps; step++, rows += 4 * SIDE_BY_SIDE, tile += 4 * TOKENS) {
        bfloat16x8_t w[SIDE_BY_SIDE / 2];
        for (int r = 0; r < SIDE_BY_SIDE / 2; r++) w[r] = load(rows + 8 * r);
        for (int i = 0; i < TOKENS / 2; i++) {
            const bfloat16x8_t x = load(tile + 8 * i);
            for (int r = 0; r < SIDE_BY_SIDE / 2; r++) sums[i][r] = vbfmmlaq_f32(sums[i][r], x, w[r]);
        }
    }
    for (int i = 0; i < TOKENS / 2; i++)
        for (int r = 0; r < SIDE_BY_SIDE / 2; r++) {
            float *at = out + 2 * i * DENSE_ROWS + 2 * r;
            vst1_f32(at, vget_low_f32(sums[i][r])), vst1_f32(at + DENSE_ROWS, vget_high_f32(sums[i][r]));
        }
}

void linear_dense_bf16(const uint16_t *weight, size_t stride, int n_rows, int depth, const uint16_t *tiles, int n_tiles,
                       float *out) {
    alignas(64) static thread_local uint16_t rows[DENSE_ROWS * DENSE_DEPTH];
    const int n_steps = (depth + 3) / 4;
    interleave_rows(weight, stride, n_rows, depth, rows);
    for (int t = 0; t < n_tiles; t++, tiles += 4 * TOKENS * n_steps, out += TOKENS * DENSE_ROWS)
        for (int first = 0; first < DENSE_ROWS; first += SIDE_BY_SIDE)
            add_tile(rows + size_t(first) * n_steps * 4, tiles, n_steps, out + first);
}

} // namespace

const Kernels &bf16_kernels() {
    static const Kernels kernels = [] {
        Kernels k = i8mm_kernels;
        k.name = "bf16", k.linear_dense_bf16 = linear_dense_bf16, k.dense_bf16_tokens = TOKENS;
        return k;
    }();
    return kernels;
}

} // namespace m7b
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
