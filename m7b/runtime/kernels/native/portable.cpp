// Plain C++ for every other processor: one lane, for the compiler to make more of.
#include "kernels.h"

#include <cmath>

#include "numbers.h"

namespace m7b {
namespace {

using V = float;
constexpr int LANES = 1;

inline V v_zero() { return 0.0f; }
inline V v_set(float x) { return x; }
inline V v_load(const float *x) { return *x; }
inline void v_store(float *x, V v) { *x = v; }
inline V v_add(V a, V b) { return a + b; }
inline V v_sub(V a, V b) { return a - b; }
inline V v_mul(V a, V b) { return a * b; }
inline V v_div(V a, V b) { return a / b; }
inline V v_fma(V a, V b, V c) { return a * b + c; }
inline V v_max(V a, V b) { return a > b ? a : b; }
inline V v_min(V a, V b) { return a < b ? a : b; }
inline V v_round(V a) { return std::nearbyint(a); }
inline V v_load_bf16(const uint16_t *x) { return from_bf16(*x); }
inline void v_store_bf16(uint16_t *x, V v) { *x = to_bf16(v); }
inline V v_load_f16(const uint8_t *x) {
    uint16_t half;
    std::memcpy(&half, x, 2);
    return from_f16(half);
}
inline V v_scale(V a, V n) { return a * from_bits(uint32_t(int(n) + 127) << 23); }
inline float v_sum(V v) { return v; }
inline void v_sum4(const V *v, int n, float *sums) {
    for (int i = 0; i < n && i < 4; i++) sums[i] = v_sum(v[i]);
}
inline V v_and_above(V value, V x) { return x > -87.0f ? value : 0.0f; }

template <int TYPE> struct Weights {
    static constexpr int n_words = quant_bytes(TYPE) / 64;
    int8_t w[BLOCK];

    Weights(const uint8_t *quants, int row) {
        for (int j = 0; j < n_words; j++)
            for (int i = 0; i < 4; i++) {
                uint8_t byte = quants[64 * j + 4 * row + i];
                if (n_words == 8) {
                    w[4 * j + i] = int8_t(byte);
                } else {
                    w[4 * j + i] = int8_t(byte & 15);
                    w[(16 + 4 * j + i) % BLOCK] = int8_t(byte >> 4);
                }
            }
    }

    V dot(const int8_t *quants, int32_t offset) const {
        int32_t total = TYPE == Q4_0 ? offset : 0;
        if (TYPE != Q8_0) {
            for (int i = 0; i < BLOCK; i++) total += int32_t(w[i]) * quants[i];
            return float(total);
        }
        int16_t wide[BLOCK];
        std::memcpy(wide, quants, sizeof wide);
        for (int i = 0; i < BLOCK; i += 4)
            total += w[i] * wide[i] + w[i + 1] * wide[i + 2] + w[i + 2] * wide[i + 1] + w[i + 3] * wide[i + 3];
        return float(total);
    }
};

void widen_levels(const uint8_t *quants, float scale, const float *levels, uint16_t *out) {
    uint16_t scaled[LEVELS];
    for (int i = 0; i < LEVELS; i++) scaled[i] = to_bf16(levels[i] * scale);
    for (int i = 0; i < LEVELS_BLOCK / 2; i++, out += 2)
        out[0] = scaled[quants[i] >> 4], out[1] = scaled[quants[i] & 15];
}

// The scale under which the largest of 32 values becomes `top`.
float block_scale(const float *x, float top, float *inverse) {
    float largest = 0;
    for (int i = 0; i < BLOCK; i++) largest = std::fmax(largest, std::fabs(x[i]));
    *inverse = largest > SMALLEST ? top / largest : 0.0f;
    return largest > SMALLEST ? largest / top : 0.0f;
}

void quantize_block(const float *x, int8_t *quants, float *scale, int32_t *sum) {
    float inverse;
    *scale = block_scale(x, 127.0f, &inverse);
    *sum = 0;
    for (int i = 0; i < BLOCK; i++) {
        quants[i] = int8_t(std::nearbyint(x[i] * inverse));
        *sum += quants[i];
    }
}

void quantize_block_16(const float *x, int16_t *quants, float *scale) {
    constexpr int order[4] = {0, 2, 1, 3};
    float inverse;
    *scale = block_scale(x, 32767.0f, &inverse);
    for (int i = 0; i < BLOCK; i++) quants[i / 4 * 4 + order[i % 4]] = int16_t(std::nearbyint(x[i] * inverse));
}

uint64_t sum_bytes(const uint8_t *bytes, size_t n) {
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++) sum += bytes[i];
    return sum;
}

} // namespace
} // namespace m7b

#define M7B_UNROLL_TOKENS
#include "float_kernels.h"
#include "linear_kernel.h"

namespace m7b {
const Kernels portable_kernels = {"portable",
    widen, narrow, widen_levels, quantize_block, quantize_block_16, best_scale, linear, linear_1, linear_bf16,
    nullptr, 0, attend, rms_norm, add, swiglu, sum_bytes, nullptr};
}
