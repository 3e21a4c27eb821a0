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

// 32 values of 8 rows: word j of each row in a lane of w[j].
template <int TYPE> struct Weights {
    __m256i w[8];

    Weights(const uint8_t *quants, int part) {
        const __m256i low = _mm256_set1_epi8(15);
        for (int j = 0; j < 4; j++) {
            __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(quants + 64 * j + 32 * part));
            w[j] = _mm256_and_si256(v, low);
            w[4 + j] = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
        }
    }

    // 16 products of at most 15 * 127 fit 16 bits.
    V dot(const int8_t *quants, int32_t offset) const {
        __m256i pairs = _mm256_maddubs_epi16(w[0], word(quants, 0));
        for (int j = 1; j < 8; j++)
            pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w[j], word(quants, j)));
        __m256i total = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        if (TYPE == Q4_0) total = _mm256_add_epi32(total, _mm256_set1_epi32(offset));
        return _mm256_cvtepi32_ps(total);
    }
};

// Bytes as pairs of 16 bits: bytes 0 and 2 of each word, and bytes 1 and 3.
inline __m256i even_bytes(__m256i v) { return _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8); }
inline __m256i odd_bytes(__m256i v) { return _mm256_srai_epi16(v, 8); }

template <> struct Weights<Q8_0> {
    __m256i w[8];

    Weights(const uint8_t *quants, int part) {
        for (int j = 0; j < 8; j++)
            w[j] = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(quants + 64 * j + 32 * part));
    }

    V dot(const int8_t *quants, int32_t) const {
        __m256i even = _mm256_setzero_si256(), odd = even;
        for (int j = 0; j < 8; j++) {
            even = _mm256_add_epi32(even, _mm256_madd_epi16(even_bytes(w[j]), word(quants, 2 * j)));
            odd = _mm256_add_epi32(odd, _mm256_madd_epi16(odd_bytes(w[j]), word(quants, 2 * j + 1)));
        }
        return _mm256_cvtepi32_ps(_mm256_add_epi32(even, odd));
    }
};

template <> struct Weights<INT8> {
    __m256i w[8];

    Weights(const uint8_t *quants, int part) {
        for (int j = 0; j < 8; j++)
            w[j] = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(quants + 64 * j + 32 * part));
    }

    // vpmaddubsw wants one side unsigned: |w| times the activation with the sign of w.
    V dot(const int8_t *quants, int32_t) const {
        __m256i total = _mm256_setzero_si256();
        for (int j = 0; j < 8; j++) {
            __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w[j]), _mm256_sign_epi8(word(quants, j), w[j]));
            total = _mm256_add_epi32(total, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        }
        return _mm256_cvtepi32_ps(total);
    }
};

inline __m256i weight_word(const uint8_t *quants, int j, int part) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(quants + 64 * j + 32 * part));
}

using Dots = __m256i[16][2]; // of 16 tokens, each for both parts of 16 rows

// A block in two halves of four words: the weights of a half stay in registers while all tokens pass,
// and a word of a token is broadcast once for 16 rows. Loads would otherwise hold up the products.
template <int TYPE> void block_dots(const uint8_t *quants, const int8_t *tokens, const int32_t *offsets, Dots &dots) {
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    for (int half = 0; half < 2; half++) {
        __m256i w[2][4];
        for (int j = 0; j < 4; j++)
            for (int part = 0; part < 2; part++) {
                const __m256i v = weight_word(quants, j, part);
                w[part][j] = _mm256_and_si256(half ? _mm256_srli_epi16(v, 4) : v, low);
            }
        for (int i = 0; i < 16; i++) {
            __m256i x = word(tokens + BLOCK * i, 4 * half);
            __m256i a = _mm256_maddubs_epi16(w[0][0], x), b = _mm256_maddubs_epi16(w[1][0], x);
            for (int j = 1; j < 4; j++) {
                x = word(tokens + BLOCK * i, 4 * half + j);
                a = _mm256_add_epi16(a, _mm256_maddubs_epi16(w[0][j], x));
                b = _mm256_add_epi16(b, _mm256_maddubs_epi16(w[1][j], x));
            }
            if (half) {
                a = _mm256_add_epi16(a, dots[i][0]), b = _mm256_add_epi16(b, dots[i][1]);
                const __m256i offset = _mm256_set1_epi32(TYPE == Q4_0 ? offsets[i] : 0);
                a = _mm256_add_epi32(_mm256_madd_epi16(a, ones), offset);
                b = _mm256_add_epi32(_mm256_madd_epi16(b, ones), offset);
            }
            dots[i][0] = a, dots[i][1] = b;
        }
    }
}

template <> void block_dots<Q8_0>(const uint8_t *quants, const int8_t *tokens, const int32_t *, Dots &dots) {
    for (int quarter = 0; quarter < 4; quarter++) {
        __m256i w[2][4];
        for (int j = 0; j < 2; j++)
            for (int part = 0; part < 2; part++) {
                const __m256i v = weight_word(quants, 2 * quarter + j, part);
                w[part][2 * j] = even_bytes(v), w[part][2 * j + 1] = odd_bytes(v);
            }
        for (int i = 0; i < 16; i++) {
            __m256i x = word(tokens + 2 * BLOCK * i, 4 * quarter);
            __m256i a = _mm256_madd_epi16(w[0][0], x), b = _mm256_madd_epi16(w[1][0], x);
            for (int j = 1; j < 4; j++) {
                x = word(tokens + 2 * BLOCK * i, 4 * quarter + j);
                a = _mm256_add_epi32(a, _mm256_madd_epi16(w[0][j], x));
                b = _mm256_add_epi32(b, _mm256_madd_epi16(w[1][j], x));
            }
            if (quarter) a = _mm256_add_epi32(a, dots[i][0]), b = _mm256_add_epi32(b, dots[i][1]);
            dots[i][0] = a, dots[i][1] = b;
        }
    }
}

template <> void block_dots<INT8>(const uint8_t *quants, const int8_t *tokens, const int32_t *, Dots &dots) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int part = 0; part < 2; part++)
        for (int half = 0; half < 2; half++) {
            __m256i w[4], size[4];
            for (int j = 0; j < 4; j++) {
                w[j] = weight_word(quants, 4 * half + j, part);
                size[j] = _mm256_abs_epi8(w[j]);
            }
            for (int i = 0; i < 16; i++) {
                __m256i total = half ? dots[i][part] : _mm256_setzero_si256();
                for (int j = 0; j < 4; j++) {
                    const __m256i x = _mm256_sign_epi8(word(tokens + BLOCK * i, 4 * half + j), w[j]);
                    total = _mm256_add_epi32(total, _mm256_madd_epi16(_mm256_maddubs_epi16(size[j], x), ones));
                }
                dots[i][part] = total;
            }
        }
}

template <int TYPE> void linear_16(const uint8_t *panel, int n_blocks, const Tile &tile, float *out) {
    const uint8_t *quants = panel, *scales = panel + size_t(n_blocks) * quant_bytes(TYPE);
    V sums[16][2];
    Dots dots;
    for (auto &sum : sums) sum[0] = sum[1] = v_zero();
    for (int b = 0; b < n_blocks; b++, quants += quant_bytes(TYPE), scales += scale_bytes(TYPE)) {
        const float *token_scales = tile.scales + 16 * b;
        const int32_t *offsets = tile.offsets + 16 * b;
        block_dots<TYPE>(quants, tile.quants + size_t(b) * 16 * BLOCK * activation_bytes(TYPE), offsets, dots);
        for (int part = 0; part < 2; part++)
            for (int i = 0; i < 16; i++)
                add_scaled<TYPE>(_mm256_cvtepi32_ps(dots[i][part]), scales + 16 * part, token_scales[i],
                                 offsets[i], sums[i][part]);
    }
    for (int i = 0; i < 16; i++)
        for (int part = 0; part < 2; part++) v_store(out + PANEL * i + LANES * part, sums[i][part]);
}

} // namespace
} // namespace m7b

#define M7B_UNROLL_TOKENS
#define M7B_OWN_LINEAR_16
#include "float_kernels.h"
#include "dense_kernel.h"
#include "linear_kernel.h"

namespace m7b {
const Kernels avx2_kernels = {"avx2",
    widen, narrow, widen_levels, quantize_block, quantize_block_16, best_scale, linear, linear_1, linear_bf16,
    linear_dense, DENSE_TOKENS, attend, rms_norm, add, swiglu, sum_bytes, nullptr};
}
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
