// Sixteen float32 lanes. Needs AVX-512 F, BW, VL and DQ.
#pragma once
#include <immintrin.h>

#include <cstring>

namespace m7b {
namespace {

using V = __m512;
constexpr int LANES = 16, REGISTERS = 32;

inline V v_zero() { return _mm512_setzero_ps(); }
inline V v_set(float x) { return _mm512_set1_ps(x); }
inline V v_load(const float *x) { return _mm512_loadu_ps(x); }
inline void v_store(float *x, V v) { _mm512_storeu_ps(x, v); }
inline V v_add(V a, V b) { return _mm512_add_ps(a, b); }
inline V v_sub(V a, V b) { return _mm512_sub_ps(a, b); }
inline V v_mul(V a, V b) { return _mm512_mul_ps(a, b); }
inline V v_div(V a, V b) { return _mm512_div_ps(a, b); }
inline V v_fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
inline V v_max(V a, V b) { return _mm512_max_ps(a, b); }
inline V v_min(V a, V b) { return _mm512_min_ps(a, b); }
inline V v_round(V a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline V v_load_bf16(const uint16_t *x) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(x)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline void v_store_bf16(uint16_t *x, V v) {
    const __m512i bits = _mm512_castps_si512(v), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
    rounded = _mm512_mask_set1_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), 0x7fc00000);
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(x), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
inline V v_load_f16(const uint8_t *x) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(x)));
}
// A word that ends with it spares a way through another register.
inline V v_set_bf16(const uint8_t *x) {
    int32_t word;
    std::memcpy(&word, x - 2, 4);
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_set1_epi32(word), _mm512_set1_epi32(int32_t(0xffff0000))));
}
// As the last bits of 2^23, which spares the conversion.
constexpr float QUANT_OFFSET = 8388608.0f;
inline V v_load_quants(const uint8_t *x) {
    const __m512i spread = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i bytes = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i *>(x)));
    return _mm512_castsi512_ps(_mm512_mask_shuffle_epi8(_mm512_set1_epi32(0x4b000000), 0x1111111111111111, bytes, spread));
}
inline V v_load_i8(const uint8_t *x) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(x))));
}
template <int SHIFT> inline V v_load_nibble(const uint8_t *x) {
    const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(x)));
    return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(wide, SHIFT), _mm512_set1_epi32(15)));
}
inline V v_scale(V a, V n) {
    __m512i exponent = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23);
    return _mm512_mul_ps(a, _mm512_castsi512_ps(exponent));
}
inline float v_sum(V v) { return _mm512_reduce_add_ps(v); }
inline void v_sum4(const V *v, int n, float *sums) {
    for (int i = 0; i < n && i < 4; i++) sums[i] = v_sum(v[i]);
}
// By the order of v_sum: halves, then their halves.
inline void v_sum16(const V *v, float *sums) {
    V pairs[8], fours[4], eights[2];
    for (int i = 0; i < 8; i++)
        pairs[i] = v_add(_mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0x44), _mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0xee));
    for (int i = 0; i < 4; i++)
        fours[i] = v_add(_mm512_shuffle_f32x4(pairs[2 * i], pairs[2 * i + 1], 0x88),
                         _mm512_shuffle_f32x4(pairs[2 * i], pairs[2 * i + 1], 0xdd));
    for (int i = 0; i < 2; i++)
        eights[i] = v_add(_mm512_shuffle_ps(fours[2 * i], fours[2 * i + 1], 0x44),
                          _mm512_shuffle_ps(fours[2 * i], fours[2 * i + 1], 0xee));
    V all = v_add(_mm512_shuffle_ps(eights[0], eights[1], 0x88), _mm512_shuffle_ps(eights[0], eights[1], 0xdd));
    // Lane 4 * i + j now has the sum of vector 4 * j + i.
    const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    v_store(sums, _mm512_permutexvar_ps(order, all));
}
inline V v_and_above(V value, V x, float limit) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_GT_OQ), value);
}

using B = __m512i;
inline B b_load(const uint8_t *x) { return _mm512_loadu_si512(x); }
inline B b_or(B a, B b) { return _mm512_or_si512(a, b); }
template <int SHIFT, int MASK> inline B b_take(B a) {
    if constexpr (SHIFT > 0) a = _mm512_srli_epi16(a, SHIFT);
    if constexpr (SHIFT < 0) a = _mm512_slli_epi16(a, -SHIFT);
    return _mm512_and_si512(a, _mm512_set1_epi8(MASK));
}
inline B b_look_up(const int8_t *table, B a) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i *>(table))), a);
}

} // namespace
} // namespace m7b
