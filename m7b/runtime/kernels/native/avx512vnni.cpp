// x86 with AVX-512 and VNNI: 16 rows a vector, sums of four products of 8-bit integers by vpdpbusd.
#include "kernels.h"
#if defined(__x86_64__)
#include <cmath>
#include <cstring>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
#endif
#include "vector_avx512.h"
#include "quants.h"
#include "x86_shared.h"
#define M7B_UNROLL_TOKENS _Pragma("GCC unroll 16")

namespace m7b {
namespace {

using Word = const int8_t[4]; // four activations, or two of 16 bits: the same for every row
inline Word &word(const int8_t *quants, int j) { return reinterpret_cast<Word &>(quants[4 * j]); }

// Assembly, because gcc 12 would load the word by an instruction of its own, which takes a tenth of the speed.
inline void add_bytes(__m512i &total, __m512i w, Word &x) {
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(total) : "v"(w), "m"(x));
}
inline void add_pairs(__m512i &total, __m512i w, Word &x) {
    asm("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(total) : "v"(w), "m"(x));
}

constexpr int PARTS = 1; // vectors that hold a row each of a panel
// Tokens whose products are summed crosswise, for each waits for the one before it.
template <int TYPE> constexpr int TOGETHER = 4 / n_groups(TYPE);

// 32 values of 16 rows, as unsigned bytes, which may be more than they stand for.
template <int TYPE> struct Weights {
    static constexpr int OFFSET = is_signed(TYPE) ? 128 : FORMATS[TYPE].offset, GROUPS = n_groups(TYPE);
    __m512i w[8];

    explicit Weights(const uint8_t *quants) {
        load_words<TYPE, 0, 8>(quants, w);
        if constexpr (is_signed(TYPE))
            for (__m512i &word : w) word = _mm512_xor_si512(word, _mm512_set1_epi8(-128));
    }

    template <int N> void dot(const Tile &tokens, V (*dots)[PARTS][GROUPS]) const {
        __m512i totals[N][GROUPS];
        M7B_UNROLL_TOKENS
        for (int i = 0; i < N; i++)
            for (int g = 0; g < GROUPS; g++)
                totals[i][g] = times_offset(GROUPS == 1 ? tokens.offsets[i] : tokens.half_offsets[2 * i + g]);
        M7B_UNROLL_TOKENS
        for (int j = 0; j < 8 / GROUPS; j++)
            M7B_UNROLL_TOKENS
            for (int i = 0; i < N; i++)
                for (int g = 0; g < GROUPS; g++)
                    add_bytes(totals[i][g], w[4 * g + j], word(tokens.quants + BLOCK * i, 4 * g + j));
        M7B_UNROLL_TOKENS
        for (int i = 0; i < N; i++)
            for (int g = 0; g < GROUPS; g++) dots[i][0][g] = _mm512_cvtepi32_ps(totals[i][g]);
    }

    // -OFFSET times a sum of activations of which -8 times is given.
    static __m512i times_offset(int32_t sum) {
        if (OFFSET == 0) return _mm512_setzero_si512();
        const __m512i eight_times = _mm512_set1_epi32(sum);
        if (OFFSET < 8) return _mm512_srai_epi32(eight_times, 8 / (OFFSET ? OFFSET : 8) - 1);
        return OFFSET == 8 ? eight_times : _mm512_slli_epi32(eight_times, OFFSET == 16 ? 1 : OFFSET == 32 ? 2 : 4);
    }
};

// Bytes as pairs of 16 bits: bytes 0 and 2 of each word, and bytes 1 and 3.
template <> struct Weights<Q8_0> {
    __m512i w[16];

    explicit Weights(const uint8_t *quants) {
        for (int j = 0; j < 8; j++) {
            __m512i v = _mm512_loadu_si512(quants + 64 * j);
            w[2 * j] = _mm512_srai_epi16(_mm512_slli_epi16(v, 8), 8);
            w[2 * j + 1] = _mm512_srai_epi16(v, 8);
        }
    }

    template <int N> void dot(const Tile &tokens, V (*dots)[PARTS][1]) const {
        __m512i totals[N];
        M7B_UNROLL_TOKENS
        for (int i = 0; i < N; i++) totals[i] = _mm512_setzero_si512();
        M7B_UNROLL_TOKENS
        for (int j = 0; j < 16; j++)
            M7B_UNROLL_TOKENS
            for (int i = 0; i < N; i++) add_pairs(totals[i], w[j], word(tokens.quants + 2 * BLOCK * i, j));
        M7B_UNROLL_TOKENS
        for (int i = 0; i < N; i++) dots[i][0][0] = _mm512_cvtepi32_ps(totals[i]);
    }
};

} // namespace
} // namespace m7b

#include "instruction_set.h"
#include "dense_kernel.h"

namespace m7b {
const Kernels avx512vnni_kernels = with_dense(bring("avx512vnni"));
const Linears *const avx512vnni_linears_ahead = LINEARS<true>.data();
}
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
