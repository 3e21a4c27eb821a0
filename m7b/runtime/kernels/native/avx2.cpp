// x86 with AVX2, FMA and F16C: 8 rows a vector, products of 8-bit integers by vpmaddubsw.
#include "kernels.h"
#if defined(__x86_64__) || defined(_M_X64)
#include <cmath>
#include <cstring>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC target("avx2,fma,f16c")
#endif
#include "vector_avx2.h"
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

    // 16 products of at most 15 * 127 fit 16 bits. Q4_0 stores value + 8.
    V dot(const int8_t *quants, int32_t sum) const {
        __m256i pairs = _mm256_maddubs_epi16(w[0], word(quants, 0));
        for (int j = 1; j < 8; j++)
            pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w[j], word(quants, j)));
        __m256i total = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        if (TYPE == Q4_0) total = _mm256_sub_epi32(total, _mm256_slli_epi32(_mm256_set1_epi32(sum), 3));
        return _mm256_cvtepi32_ps(total);
    }
};

template <> struct Weights<Q8_0> {
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

} // namespace
} // namespace m7b

#define M7B_UNROLL_TOKENS
#include "float_kernels.h"
#include "linear_kernel.h"

namespace m7b {
const Kernels avx2_kernels = {"avx2", quantize_block, linear, linear_bf16, attend, rms_norm, swiglu, sum_bytes};
}
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
