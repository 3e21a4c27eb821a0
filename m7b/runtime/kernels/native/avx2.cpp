// x86 with AVX2, FMA and F16C: 8 rows a vector, products of 8-bit integers by vpmaddubsw.
#include "kernels.h"
#if defined(__x86_64__)
#include <cmath>
#include <cstring>
#include <type_traits>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#include "vector_avx2.h"
#include "quants.h"
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
template <int TYPE> constexpr int TOGETHER = MAX_TOKENS;

inline __m256i weight_word(const uint8_t *quants, int j, int part) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(quants + 64 * j + 32 * part));
}

// -offset times a sum of activations of which -8 times is given.
template <int TYPE> inline __m256i times_offset(int32_t sum) {
    return _mm256_set1_epi32(sum * FORMATS[TYPE].offset / 8);
}

// 32 values of 16 rows, unpacked some words at a time: these stay in registers while all tokens pass, and a word of a
// token is broadcast once for both parts. Loads would otherwise hold up the products.
template <int TYPE> struct UnsignedWeights {
    const uint8_t *quants;

    explicit UnsignedWeights(const uint8_t *quants) : quants(quants) {}

    template <int N> void dot(const Tile &tokens, V (*dots)[PARTS][n_groups(TYPE)]) const {
        __m256i sums[N][PARTS];
        add_half<N, 0>(tokens, sums, dots);
        add_half<N, 1>(tokens, sums, dots);
    }

    // Products of 16 bits, of a quant and an activation of at most 127 each: as many as 16 bits hold are added up first.
    template <int N, int HALF> void add_half(const Tile &tokens, __m256i (*sums)[PARTS], V (*dots)[PARTS][n_groups(TYPE)]) const {
        constexpr int BITS = FORMATS[TYPE].bits, GROUPS = n_groups(TYPE);
        constexpr bool waits = GROUPS == 1 && BITS == 4; // 32 of them do
        const __m256i ones = _mm256_set1_epi16(1);
        __m256i w[PARTS][4];
        for (int part = 0; part < PARTS; part++) load_words<TYPE, 4 * HALF, 4>(quants + 32 * part, w[part]);
        for (int i = 0; i < N; i++) {
            __m256i totals[PARTS], late[PARTS]; // of the first two words and, where 16 bits hold no more, of the others
            for (int j = 0; j < 4; j++) {
                const __m256i x = word(tokens.quants + BLOCK * i, 4 * HALF + j);
                for (int part = 0; part < PARTS; part++) {
                    const __m256i products = _mm256_maddubs_epi16(w[part][j], x);
                    if (j == 0) totals[part] = products;
                    else if (BITS == 6 && j == 2) late[part] = products;
                    else if (BITS == 6 && j == 3) late[part] = _mm256_add_epi16(late[part], products);
                    else totals[part] = _mm256_add_epi16(totals[part], products);
                }
            }
            for (int part = 0; part < PARTS; part++) {
                __m256i total = totals[part];
                if (waits && HALF == 1) total = _mm256_add_epi16(total, sums[i][part]);
                if (!waits || HALF == 1) total = _mm256_madd_epi16(total, ones);
                if (BITS == 6) total = _mm256_add_epi32(total, _mm256_madd_epi16(late[part], ones));
                if (GROUPS == 2) {
                    total = _mm256_add_epi32(total, times_offset<TYPE>(tokens.half_offsets[2 * i + HALF]));
                    dots[i][part][GROUPS == 2 ? HALF : 0] = _mm256_cvtepi32_ps(total);
                } else if (HALF == 0) {
                    sums[i][part] = total;
                } else {
                    if (!waits) total = _mm256_add_epi32(total, sums[i][part]);
                    total = _mm256_add_epi32(total, times_offset<TYPE>(tokens.offsets[i]));
                    dots[i][part][0] = _mm256_cvtepi32_ps(total);
                }
            }
        }
    }
};

// vpmaddubsw wants one side unsigned: |w| times the activation with the sign of w.
template <int TYPE> struct SignedWeights {
    const uint8_t *quants;

    explicit SignedWeights(const uint8_t *quants) : quants(quants) {}

    template <int N> void dot(const Tile &tokens, V (*dots)[PARTS][1]) const {
        for (int part = 0; part < PARTS; part++) {
            __m256i sums[N];
            add_half<N, 0>(tokens, part, sums, dots);
            add_half<N, 1>(tokens, part, sums, dots);
        }
    }

    template <int N, int HALF> void add_half(const Tile &tokens, int part, __m256i *sums, V (*dots)[PARTS][1]) const {
        const __m256i ones = _mm256_set1_epi16(1);
        __m256i w[4], size[4];
        load_words<TYPE, 4 * HALF, 4>(quants + 32 * part, w);
        for (int j = 0; j < 4; j++) size[j] = _mm256_abs_epi8(w[j]);
        for (int i = 0; i < N; i++) {
            __m256i total = HALF ? sums[i] : _mm256_setzero_si256();
            for (int j = 0; j < 4; j++) {
                const __m256i x = _mm256_sign_epi8(word(tokens.quants + BLOCK * i, 4 * HALF + j), w[j]);
                total = _mm256_add_epi32(total, _mm256_madd_epi16(_mm256_maddubs_epi16(size[j], x), ones));
            }
            if (HALF == 0) sums[i] = total;
            else dots[i][part][0] = _mm256_cvtepi32_ps(total);
        }
    }
};

// Bytes as pairs of 16 bits: bytes 0 and 2 of each word, and bytes 1 and 3.
inline __m256i even_bytes(__m256i v) { return _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8); }
inline __m256i odd_bytes(__m256i v) { return _mm256_srai_epi16(v, 8); }

struct PairWeights {
    const uint8_t *quants;

    explicit PairWeights(const uint8_t *quants) : quants(quants) {}

    template <int N> void dot(const Tile &tokens, V (*dots)[PARTS][1]) const {
        __m256i sums[N][2];
        for (int quarter = 0; quarter < 4; quarter++) {
            __m256i w[2][4];
            for (int j = 0; j < 2; j++)
                for (int part = 0; part < 2; part++) {
                    const __m256i v = weight_word(quants, 2 * quarter + j, part);
                    w[part][2 * j] = even_bytes(v), w[part][2 * j + 1] = odd_bytes(v);
                }
            for (int i = 0; i < N; i++) {
                __m256i x = word(tokens.quants + 2 * BLOCK * i, 4 * quarter);
                __m256i a = _mm256_madd_epi16(w[0][0], x), b = _mm256_madd_epi16(w[1][0], x);
                for (int j = 1; j < 4; j++) {
                    x = word(tokens.quants + 2 * BLOCK * i, 4 * quarter + j);
                    a = _mm256_add_epi32(a, _mm256_madd_epi16(w[0][j], x));
                    b = _mm256_add_epi32(b, _mm256_madd_epi16(w[1][j], x));
                }
                if (quarter) a = _mm256_add_epi32(a, sums[i][0]), b = _mm256_add_epi32(b, sums[i][1]);
                if (quarter < 3) sums[i][0] = a, sums[i][1] = b;
                else dots[i][0][0] = _mm256_cvtepi32_ps(a), dots[i][1][0] = _mm256_cvtepi32_ps(b);
            }
        }
    }
};

template <int TYPE>
using Weights = std::conditional_t<TYPE == Q8_0, PairWeights,
                                   std::conditional_t<is_signed(TYPE), SignedWeights<TYPE>, UnsignedWeights<TYPE>>>;

} // namespace
} // namespace m7b

#define M7B_UNROLL_TOKENS
#include "instruction_set.h"
#include "dense_kernel.h"

namespace m7b {
const Kernels avx2_kernels = with_dense(bring("avx2"));
}
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
