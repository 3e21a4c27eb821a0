// Conversions between float32, float16 and bfloat16, and the smaller of two numbers. Static, so that no instruction
// set leaks into another, as it could through std::min.
#pragma once
#include <cstdint>
#include <cstring>

namespace m7b {

static inline int smaller(int a, int b) { return a < b ? a : b; }
static inline int larger(int a, int b) { return a > b ? a : b; }

static inline float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

static inline uint32_t to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

static inline float from_bf16(uint16_t half) { return from_bits(uint32_t(half) << 16); }

// Rounds to nearest, ties to even; NaN stays NaN.
static inline uint16_t to_bf16(float value) {
    uint32_t bits = to_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

static inline float from_f16(uint16_t half) {
    uint32_t sign = uint32_t(half & 0x8000u) << 16, exponent = (half >> 10) & 31, fraction = half & 1023;
    if (exponent == 31) return from_bits(sign | 0x7f800000u | (fraction << 13));
    if (exponent) return from_bits(sign | ((exponent + 112) << 23) | (fraction << 13));
    float value = float(fraction) * 5.9604644775390625e-8f; // subnormal: units of 2^-24
    return sign ? -value : value;
}

// Rounds to nearest, ties to even; what is too large becomes infinite.
static inline uint16_t to_f16(float value) {
    uint32_t bits = to_bits(value), sign = (bits >> 16) & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return uint16_t(sign | 0x7e00u);
    if (bits >= 0x477ff000u) return uint16_t(sign | 0x7c00u);
    if (bits < 0x38800000u) { // subnormal: the addition rounds to units of 2^-24
        float shifted = from_bits(bits) + 0.5f;
        return uint16_t(sign | (to_bits(shifted) - to_bits(0.5f)));
    }
    return uint16_t(sign | ((bits - 0x38000000u + 0xfffu + ((bits >> 13) & 1)) >> 13));
}

} // namespace m7b
