// x86 with AVX2, FMA and F16C: 8 rows a vector, products of 8-bit integers by vpmaddubsw.
#include "kernels.h"
#if defined(__x86_64__)
#include <cmath>
#include <cstring>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#include "vector_avx2.h"
#include "scaled_sum.h"
#include "x86_shared.h"

namespace m7b {
namespace {

inline __m256i word(const int8_t *quants, int j) {
    int32_t word;
    std::memcpy(&word, quants + 4 * j, 4);
    return _mm256_set1_epi32(word);
}

constexpr int PARTS = 2;
constexpr int GROUP = MAX_TOKENS;

inline __m256i weight_word(const uint8_t *quants, int j, int part) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(quants + 64 * j + 32 * part));
}

// 32 values of 16 rows, unpacked some words at a time: these stay in registers while all tokens pass, and a word of a
// token is broadcast once for both parts. Loads would otherwise hold up the products.
template <int TYPE> struct Weights {
    const uint8_t *quants;

    explicit Weights(const uint8_t *quants) : quants(quants) {}

    // 16 products of at most 15 * 127 fit 16 bits.
    template <int N> void dot(const int8_t *tokens, const int32_t *offsets, V (*dots)[PARTS]) const {
        const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
        __m256i sums[N][2];
        for (int half = 0; half < 2; half++) {
            __m256i w[2][4];
            for (int j = 0; j < 4; j++)
                for (int part = 0; part < 2; part++) {
                    const __m256i v = weight_word(quants, j, part);
                    w[part][j] = _mm256_and_si256(half ? _mm256_srli_epi16(v, 4) : v, low);
                }
            for (int i = 0; i < N; i++) {
                __m256i x = word(tokens + BLOCK * i, 4 * half);
                __m256i a = _mm256_maddubs_epi16(w[0][0], x), b = _mm256_maddubs_epi16(w[1][0], x);
                for (int j = 1; j < 4; j++) {
                    x = word(tokens + BLOCK * i, 4 * half + j);
                    a = _mm256_add_epi16(a, _mm256_maddubs_epi16(w[0][j], x));
                    b = _mm256_add_epi16(b, _mm256_maddubs_epi16(w[1][j], x));
                }
                if (half == 0) {
                    sums[i][0] = a, sums[i][1] = b;
                    continue;
                }
                a = _mm256_add_epi16(a, sums[i][0]), b = _mm256_add_epi16(b, sums[i][1]);
                const __m256i offset = _mm256_set1_epi32(TYPE == Q4_0 ? offsets[i] : 0);
                dots[i][0] = _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_madd_epi16(a, ones), offset));
                dots[i][1] = _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_madd_epi16(b, ones), offset));
            }
        }
    }
};

// Bytes as pairs of 16 bits: bytes 0 and 2 of each word, and bytes 1 and 3.
inline __m256i even_bytes(__m256i v) { return _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8); }
inline __m256i odd_bytes(__m256i v) { return _mm256_srai_epi16(v, 8); }

template <> struct Weights<Q8_0> {
    const uint8_t *quants;

    explicit Weights(const uint8_t *quants) : quants(quants) {}

    template <int N> void dot(const int8_t *tokens, const int32_t *, V (*dots)[PARTS]) const {
        __m256i sums[N][2];
        for (int quarter = 0; quarter < 4; quarter++) {
            __m256i w[2][4];
            for (int j = 0; j < 2; j++)
                for (int part = 0; part < 2; part++) {
                    const __m256i v = weight_word(quants, 2 * quarter + j, part);
                    w[part][2 * j] = even_bytes(v), w[part][2 * j + 1] = odd_bytes(v);
                }
            for (int i = 0; i < N; i++) {
                __m256i x = word(tokens + 2 * BLOCK * i, 4 * quarter);
                __m256i a = _mm256_madd_epi16(w[0][0], x), b = _mm256_madd_epi16(w[1][0], x);
                for (int j = 1; j < 4; j++) {
                    x = word(tokens + 2 * BLOCK * i, 4 * quarter + j);
                    a = _mm256_add_epi32(a, _mm256_madd_epi16(w[0][j], x));
                    b = _mm256_add_epi32(b, _mm256_madd_epi16(w[1][j], x));
                }
                if (quarter) a = _mm256_add_epi32(a, sums[i][0]), b = _mm256_add_epi32(b, sums[i][1]);
                if (quarter < 3) sums[i][0] = a, sums[i][1] = b;
                else dots[i][0] = _mm256_cvtepi32_ps(a), dots[i][1] = _mm256_cvtepi32_ps(b);
            }
        }
    }
};

template <> struct Weights<INT8> {
    const uint8_t *quants;

    explicit Weights(const uint8_t *quants) : quants(quants) {}

    // vpmaddubsw wants one side unsigned: |w| times the activation with the sign of w.
    template <int N> void dot(const int8_t *tokens, const int32_t *, V (*dots)[PARTS]) const {
        const __m256i ones = _mm256_set1_epi16(1);
        for (int part = 0; part < 2; part++) {
            __m256i sums[N];
            for (int half = 0; half < 2; half++) {
                __m256i w[4], size[4];
                for (int j = 0; j < 4; j++) {
                    w[j] = weight_word(quants, 4 * half + j, part);
                    size[j] = _mm256_abs_epi8(w[j]);
                }
                for (int i = 0; i < N; i++) {
                    __m256i total = half ? sums[i] : _mm256_setzero_si256();
                    for (int j = 0; j < 4; j++) {
                        const __m256i x = _mm256_sign_epi8(word(tokens + BLOCK * i, 4 * half + j), w[j]);
                        total = _mm256_add_epi32(total, _mm256_madd_epi16(_mm256_maddubs_epi16(size[j], x), ones));
                    }
                    if (half == 0) sums[i] = total;
                    else dots[i][part] = _mm256_cvtepi32_ps(total);
                }
            }
        }
    }
};

} // namespace
} // namespace m7b

#define M7B_UNROLL_TOKENS
#include "float_kernels.h"
#include "dense_kernel.h"
#include "linear_kernel.h"

namespace m7b {
const Kernels avx2_kernels = {"avx2",
    widen, narrow, widen_levels, quantize_block, quantize_block_16, best_scale, LINEARS, nullptr, linear_bf16,
    linear_dense, DENSE_TOKENS, attend, rms_norm, add, swiglu, sum_bytes};
}
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
