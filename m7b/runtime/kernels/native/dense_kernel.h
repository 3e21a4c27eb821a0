// Rows of bfloat16 times many tokens in float32, over the vector type V that is included before. x86 only.
#pragma once
#include <immintrin.h>

#include "kernels.h"
#include "numbers.h"

namespace m7b {
namespace {

constexpr int DENSE_TOKENS = LANES == 16 ? 12 : 6; // as registers allow
constexpr int SIDE_BY_SIDE = 2 * LANES;            // rows

// 8 columns of 8 rows, column after column, `distance` apart.
inline void turn_8(const uint16_t *rows, size_t stride, float *out, size_t distance) {
    __m128i row[8], pair[8], four[8];
    for (int r = 0; r < 8; r++) row[r] = _mm_loadu_si128(reinterpret_cast<const __m128i *>(rows + r * stride));
    for (int i = 0; i < 4; i++) {
        pair[i] = _mm_unpacklo_epi16(row[2 * i], row[2 * i + 1]);
        pair[4 + i] = _mm_unpackhi_epi16(row[2 * i], row[2 * i + 1]);
    }
    for (int i = 0; i < 8; i += 2) {
        four[i] = _mm_unpacklo_epi32(pair[i], pair[i + 1]);
        four[i + 1] = _mm_unpackhi_epi32(pair[i], pair[i + 1]);
    }
    for (int i = 0; i < 8; i++) {
        const __m128i low = four[i / 4 * 4 + i / 2 % 2], high = four[i / 4 * 4 + i / 2 % 2 + 2];
        const __m128i column = i % 2 ? _mm_unpackhi_epi64(low, high) : _mm_unpacklo_epi64(low, high);
        const __m256i wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(column), 16);
        _mm256_storeu_ps(out + i * distance, _mm256_castsi256_ps(wide));
    }
}

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

} // namespace
} // namespace m7b
