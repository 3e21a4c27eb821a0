// Rows of bfloat16 times many tokens in float32, over what instruction_set.h lists.
#pragma once
#include "kernels.h"
#include "numbers.h"

namespace m7b {
namespace {

// 8 columns of 8 rows of bfloat16 to float32, column after column, `distance` apart: for an instruction set to bring.
void turn_8(const uint16_t *rows, size_t stride, float *out, size_t distance);

constexpr int DENSE_TOKENS = REGISTERS == 32 ? 12 : 6; // as registers allow
constexpr int SIDE_BY_SIDE = 2 * LANES;            // rows

// DENSE_ROWS rows to (DENSE_ROWS / SIDE_BY_SIDE, depth, SIDE_BY_SIDE); those beyond `n_rows` are 0.
void turn_rows(const uint16_t *weight, size_t stride, int n_rows, int depth, float *turned) {
    for (int first = 0; first < DENSE_ROWS; first += 8, weight += 8 * stride) {
        float *to = turned + first / SIDE_BY_SIDE * SIDE_BY_SIDE * depth + first % SIDE_BY_SIDE;
        int k = 0;
        if (first + 8 <= n_rows)
            for (; k + 8 <= depth; k += 8) turn_8(weight + k, stride, to + SIDE_BY_SIDE * k, SIDE_BY_SIDE);
        for (; k < depth; k++)
            for (int r = 0; r < 8; r++)
                to[SIDE_BY_SIDE * k + r] = first + r < n_rows ? from_bf16(weight[r * stride + k]) : 0.0f;
    }
}

// SIDE_BY_SIDE turned rows times a tile of tokens; the tile behind it comes meanwhile.
void add_tile(const float *turned, const float *tile, int depth, float *out) {
    V sums[DENSE_TOKENS][2];
    for (int i = 0; i < DENSE_TOKENS; i++)
        for (int c = 0; c < 2; c++) sums[i][c] = v_load(out + DENSE_ROWS * i + LANES * c);
    for (int k = 0; k < depth; k++, turned += SIDE_BY_SIDE, tile += DENSE_TOKENS) {
        __builtin_prefetch(tile + DENSE_TOKENS * depth);
        const V a = v_load(turned), b = v_load(turned + LANES);
        for (int i = 0; i < DENSE_TOKENS; i++) {
            const V x = v_set(tile[i]);
            sums[i][0] = v_fma(a, x, sums[i][0]), sums[i][1] = v_fma(b, x, sums[i][1]);
        }
    }
    for (int i = 0; i < DENSE_TOKENS; i++)
        for (int c = 0; c < 2; c++) v_store(out + DENSE_ROWS * i + LANES * c, sums[i][c]);
}

void linear_dense(const uint16_t *weight, size_t stride, int n_rows, int depth, const float *tiles, int n_tiles,
                  float *out) {
    alignas(64) static thread_local float turned[DENSE_ROWS * DENSE_DEPTH];
    turn_rows(weight, stride, n_rows, depth, turned);
    for (int t = 0; t < n_tiles; t++, tiles += DENSE_TOKENS * depth, out += DENSE_TOKENS * DENSE_ROWS)
        for (int first = 0; first < DENSE_ROWS; first += SIDE_BY_SIDE)
            add_tile(turned + first * depth, tiles, depth, out + first);
}

constexpr Kernels with_dense(Kernels k) {
    k.linear_dense = linear_dense, k.dense_tokens = DENSE_TOKENS;
    return k;
}

} // namespace
} // namespace m7b
