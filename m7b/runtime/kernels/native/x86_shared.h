// What AVX-512 has no need to do differently from AVX2, over the vector type V that is included before.
#pragma once
#include <immintrin.h>

#include "kernels.h"

namespace m7b {
namespace {

// Two tables of bytes hold the levels under this scale: the low and the high half of each.
void widen_levels(const uint8_t *quants, float scale, const float *levels, uint16_t *out) {
    alignas(16) uint16_t scaled[LEVELS];
    for (int i = 0; i < LEVELS; i += LANES) v_store_bf16(scaled + i, v_mul(v_load(levels + i), v_set(scale)));
    const __m128i a = _mm_load_si128(reinterpret_cast<const __m128i *>(scaled));
    const __m128i b = _mm_load_si128(reinterpret_cast<const __m128i *>(scaled + 8));
    const __m128i byte = _mm_set1_epi16(255), nibble = _mm_set1_epi8(15);
    const __m128i low = _mm_packus_epi16(_mm_and_si128(a, byte), _mm_and_si128(b, byte));
    const __m128i high = _mm_packus_epi16(_mm_srli_epi16(a, 8), _mm_srli_epi16(b, 8));
    for (int i = 0; i < LEVELS_BLOCK / 2; i += 16, out += 32) {
        const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i *>(quants + i));
        const __m128i even = _mm_and_si128(_mm_srli_epi16(v, 4), nibble), odd = _mm_and_si128(v, nibble);
        const __m128i even_low = _mm_shuffle_epi8(low, even), even_high = _mm_shuffle_epi8(high, even);
        const __m128i odd_low = _mm_shuffle_epi8(low, odd), odd_high = _mm_shuffle_epi8(high, odd);
        const __m128i evens[] = {_mm_unpacklo_epi8(even_low, even_high), _mm_unpackhi_epi8(even_low, even_high)};
        const __m128i odds[] = {_mm_unpacklo_epi8(odd_low, odd_high), _mm_unpackhi_epi8(odd_low, odd_high)};
        for (int half = 0; half < 2; half++) {
            __m128i *to = reinterpret_cast<__m128i *>(out + 16 * half);
            _mm_storeu_si128(to, _mm_unpacklo_epi16(evens[half], odds[half]));
            _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(evens[half], odds[half]));
        }
    }
}

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

struct Rounded {
    __m256i q[4]; // 32 integers from -top to top
    float scale;
};

Rounded round_block(const float *x, float top) {
    __m256 v[4], size = _mm256_setzero_ps(), sign = _mm256_set1_ps(-0.0f);
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_loadu_ps(x + 8 * i);
        size = _mm256_max_ps(size, _mm256_andnot_ps(sign, v[i]));
    }
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(size), _mm256_extractf128_ps(size, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    const float largest = _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
    const __m256 inverse = _mm256_set1_ps(largest > SMALLEST ? top / largest : 0.0f);
    Rounded rounded;
    for (int i = 0; i < 4; i++) rounded.q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    rounded.scale = largest > SMALLEST ? largest / top : 0.0f;
    return rounded;
}

// The sum of eight integers.
inline int32_t add_up(__m256i v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

void quantize_block(const float *x, int8_t *quants, float *scale, int32_t *sums) {
    const Rounded rounded = round_block(x, 127.0f);
    const __m256i *q = rounded.q;
    __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    packed = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(quants), packed);
    for (int half = 0; half < 2; half++) sums[half] = add_up(_mm256_add_epi32(q[2 * half], q[2 * half + 1]));
    *scale = rounded.scale;
}

void quantize_block_16(const float *x, int16_t *quants, float *scale) {
    const Rounded rounded = round_block(x, 32767.0f);
    const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15, //
                                           0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    for (int i = 0; i < 2; i++) {
        __m256i packed = _mm256_packs_epi32(rounded.q[2 * i], rounded.q[2 * i + 1]);
        packed = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(packed, order), 0xd8);
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(quants + 16 * i), packed);
    }
    *scale = rounded.scale;
}

// Several streams, as the linears read weights: one alone is not all that memory gives.
uint64_t sum_bytes(const uint8_t *bytes, size_t n) {
    constexpr int STREAMS = 8;
    const size_t each = n / STREAMS / 64 * 64;
    __m256i total[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (size_t at = 0; at < each; at += 64)
        for (int i = 0; i < STREAMS; i++)
            for (int half = 0; half < 2; half++) {
                const uint8_t *from = bytes + i * each + at + 32 * half;
                __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from));
                total[half] = _mm256_add_epi64(total[half], _mm256_sad_epu8(v, _mm256_setzero_si256()));
            }
    uint64_t lanes[4], sum = 0;
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(lanes), _mm256_add_epi64(total[0], total[1]));
    for (uint64_t lane : lanes) sum += lane;
    for (size_t at = STREAMS * each; at < n; at++) sum += bytes[at];
    return sum;
}

} // namespace
} // namespace m7b
