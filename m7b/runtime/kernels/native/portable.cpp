// Plain C++ for every other processor: one lane, for the compiler to make more of.
#include "kernels.h"

#include <cmath>

#include "numbers.h"

namespace m7b {
namespace {

using V = float;
constexpr int LANES = 1, REGISTERS = 16;

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
inline V v_set_bf16(const uint8_t *x) {
    uint16_t half;
    std::memcpy(&half, x, 2);
    return from_bf16(half);
}
constexpr float QUANT_OFFSET = 0.0f;
inline V v_load_quants(const uint8_t *x) { return float(*x); }
inline V v_load_i8(const uint8_t *x) { return float(int8_t(*x)); }
template <int SHIFT> inline V v_load_nibble(const uint8_t *x) { return float((*x >> SHIFT) & 15); }
inline V v_scale(V a, V n) { return a * from_bits(uint32_t(int(n) + 127) << 23); }
inline float v_sum(V v) { return v; }
inline void v_sum4(const V *v, int n, float *sums) {
    for (int i = 0; i < n && i < 4; i++) sums[i] = v_sum(v[i]);
}
inline V v_and_above(V value, V x, float limit) { return x > limit ? value : 0.0f; }

using B = uint32_t;
inline B b_load(const uint8_t *x) {
    B word;
    std::memcpy(&word, x, 4);
    return word;
}
inline B b_or(B a, B b) { return a | b; }
template <int SHIFT, int MASK> inline B b_take(B a) {
    return (SHIFT > 0 ? a >> (SHIFT > 0 ? SHIFT : 0) : a << (SHIFT > 0 ? 0 : -SHIFT)) & 0x01010101u * MASK;
}
inline B b_look_up(const int8_t *table, B a) {
    B found = 0;
    for (int i = 0; i < 32; i += 8) found |= B(uint8_t(table[(a >> i) & 15])) << i;
    return found;
}

} // namespace
} // namespace m7b

#include "quants.h"

namespace m7b {
namespace {

constexpr int PARTS = PANEL;
template <int TYPE> constexpr int TOGETHER = MAX_TOKENS;

template <int TYPE> struct Weights {
    int8_t w[PANEL][BLOCK];

    explicit Weights(const uint8_t *quants) {
        for (int row = 0; row < PANEL; row++) {
            B words[8];
            load_words<TYPE, 0, 8>(quants + 4 * row, words);
            std::memcpy(w[row], words, BLOCK);
            for (int8_t &value : w[row]) value = int8_t(value - FORMATS[TYPE].offset);
        }
    }

    template <int N>
    void dot(const Tile &tokens, V (*dots)[PARTS][n_groups(TYPE)]) const {
        constexpr int GROUP_SIZE = FORMATS[TYPE].group;
        for (int i = 0; i < N; i++) {
            int16_t x[BLOCK];
            load_token(tokens.quants + i * BLOCK * activation_bytes(TYPE), x);
            for (int row = 0; row < PANEL; row++)
                for (int g = 0; g < n_groups(TYPE); g++) {
                    int32_t total = 0;
                    for (int k = g * GROUP_SIZE; k < (g + 1) * GROUP_SIZE; k++) total += int32_t(w[row][k]) * x[k];
                    dots[i][row][g] = float(total);
                }
        }
    }

    static void load_token(const int8_t *token, int16_t *x) {
        constexpr int order[4] = {0, 2, 1, 3};
        for (int k = 0; k < BLOCK; k++) x[k] = token[k];
        if (TYPE != Q8_0) return;
        int16_t wide[BLOCK];
        std::memcpy(wide, token, sizeof wide);
        for (int k = 0; k < BLOCK; k++) x[k] = wide[k / 4 * 4 + order[k % 4]];
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

void quantize_block(const float *x, int8_t *quants, float *scale, int32_t *sums) {
    float inverse;
    *scale = block_scale(x, 127.0f, &inverse);
    sums[0] = sums[1] = 0;
    for (int i = 0; i < BLOCK; i++) {
        quants[i] = int8_t(std::nearbyint(x[i] * inverse));
        sums[i / 16] += quants[i];
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
#include "instruction_set.h"

namespace m7b {
const Kernels portable_kernels = bring("portable");
}
