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
constexpr int GROUP = 4; // tokens whose products are summed crosswise, for each waits for the one before it

// 32 values of 16 rows, as unsigned bytes: those of INT8 and Q4_0 are 128 and 8 more than they stand for.
template <int TYPE> struct Weights {
    __m512i w[8];

    explicit Weights(const uint8_t *quants) {
        for (int j = 0; j < quant_bytes(TYPE) / 64; j++) {
            __m512i v = _mm512_loadu_si512(quants + 64 * j);
            if (TYPE == INT8) {
                w[j] = _mm512_xor_si512(v, _mm512_set1_epi8(-128));
            } else {
                w[j] = _mm512_and_si512(v, _mm512_set1_epi8(15));
                w[(4 + j) % 8] = _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15));
            }
        }
    }

    template <int N> void dot(const int8_t *tokens, const int32_t *offsets, V (*dots)[PARTS]) const {
        __m512i totals[N];
        M7B_UNROLL_TOKENS
        for (int i = 0; i < N; i++) {
            totals[i] = TYPE == Q4_1 ? _mm512_setzero_si512() : _mm512_set1_epi32(offsets[i]);
            if (TYPE == INT8) totals[i] = _mm512_slli_epi32(totals[i], 4);
        }
        M7B_UNROLL_TOKENS
        for (int j = 0; j < 8; j++)
            M7B_UNROLL_TOKENS
            for (int i = 0; i < N; i++) add_bytes(totals[i], w[j], word(tokens + BLOCK * i, j));
        M7B_UNROLL_TOKENS
        for (int i = 0; i < N; i++) dots[i][0] = _mm512_cvtepi32_ps(totals[i]);
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

    template <int N> void dot(const int8_t *tokens, const int32_t *, V (*dots)[PARTS]) const {
        __m512i totals[N];
        M7B_UNROLL_TOKENS
        for (int i = 0; i < N; i++) totals[i] = _mm512_setzero_si512();
        M7B_UNROLL_TOKENS
        for (int j = 0; j < 16; j++)
            M7B_UNROLL_TOKENS
            for (int i = 0; i < N; i++) add_pairs(totals[i], w[j], word(tokens + 2 * BLOCK * i, j));
        M7B_UNROLL_TOKENS
        for (int i = 0; i < N; i++) dots[i][0] = _mm512_cvtepi32_ps(totals[i]);
    }
};

} // namespace
} // namespace m7b

#include "float_kernels.h"
#include "dense_kernel.h"
#include "linear_kernel.h"

namespace m7b {
const Kernels avx512vnni_kernels = {"avx512vnni",
    widen, narrow, widen_levels, quantize_block, quantize_block_16, best_scale, LINEARS, nullptr, linear_bf16,
    linear_dense, DENSE_TOKENS, attend, rms_norm, add, swiglu, sum_bytes};
}
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
