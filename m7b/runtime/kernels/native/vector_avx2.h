// Eight float32 lanes. Needs AVX2, FMA and F16C.
#pragma once
#include <immintrin.h>

#include <cstring>

namespace m7b {
namespace {

using V = __m256;
constexpr int LANES = 8, REGISTERS = 16;

inline V v_zero() { return _mm256_setzero_ps(); }
inline V v_set(float x) { return _mm256_set1_ps(x); }
inline V v_load(const float *x) { return _mm256_loadu_ps(x); }
inline void v_store(float *x, V v) { _mm256_storeu_ps(x, v); }
inline V v_add(V a, V b) { return _mm256_add_ps(a, b); }
inline V v_sub(V a, V b) { return _mm256_sub_ps(a, b); }
inline V v_mul(V a, V b) { return _mm256_mul_ps(a, b); }
inline V v_div(V a, V b) { return _mm256_div_ps(a, b); }
inline V v_fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
inline V v_max(V a, V b) { return _mm256_max_ps(a, b); }
inline V v_min(V a, V b) { return _mm256_min_ps(a, b); }
inline V v_round(V a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline V v_load_bf16(const uint16_t *x) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(x)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline void v_store_bf16(uint16_t *x, V v) {
    const __m256i bits = _mm256_castps_si256(v), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    rounded = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), is_nan), 16);
    const __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(x), halves);
}
inline V v_load_f16(const uint8_t *x) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(x)));
}
// A word that ends with it spares a way through another register.
inline V v_set_bf16(const uint8_t *x) {
    int32_t word;
    std::memcpy(&word, x - 2, 4);
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_set1_epi32(word), _mm256_set1_epi32(int32_t(0xffff0000))));
}
constexpr float QUANT_OFFSET = 0.0f;
inline V v_load_quants(const uint8_t *x) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(x))));
}
inline V v_load_i8(const uint8_t *x) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(x))));
}
template <int SHIFT> inline V v_load_nibble(const uint8_t *x) {
    const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(x)));
    return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(wide, SHIFT), _mm256_set1_epi32(15)));
}
inline V v_scale(V a, V n) {
    __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(a, _mm256_castsi256_ps(exponent));
}
inline float v_sum(V v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline void v_sum4(const V *v, int n, float *sums) {
    __m256 a = _mm256_hadd_ps(v[0], n > 1 ? v[1] : v[0]);
    __m256 b = n > 2 ? _mm256_hadd_ps(v[2], n > 3 ? v[3] : v[2]) : a;
    __m256 c = _mm256_hadd_ps(a, b);
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(c), _mm256_extractf128_ps(c, 1)));
}
inline V v_and_above(V value, V x, float limit) {
    return _mm256_and_ps(value, _mm256_cmp_ps(x, _mm256_set1_ps(limit), _CMP_GT_OQ));
}

using B = __m256i;
inline B b_load(const uint8_t *x) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(x)); }
inline B b_or(B a, B b) { return _mm256_or_si256(a, b); }
template <int SHIFT, int MASK> inline B b_take(B a) {
    if constexpr (SHIFT > 0) a = _mm256_srli_epi16(a, SHIFT);
    if constexpr (SHIFT < 0) a = _mm256_slli_epi16(a, -SHIFT);
    return _mm256_and_si256(a, _mm256_set1_epi8(MASK));
}
inline B b_look_up(const int8_t *table, B a) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i *>(table))), a);
}

} // namespace
} // namespace m7b
