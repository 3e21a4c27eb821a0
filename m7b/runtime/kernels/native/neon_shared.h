// What the levels of NEON have in common.
#pragma once
#include "vector_neon.h"

#include "kernels.h"
#include "quants.h"

#define M7B_UNROLL_TOKENS _Pragma("GCC unroll 16")
#define M7B_INLINE_PARTS M7B_ALWAYS_INLINE

namespace m7b {
namespace {

// Two tables of bytes hold the levels under this scale: the low and the high half of each.
void widen_levels(const uint8_t *quants, float scale, const float *levels, uint16_t *out) {
    uint16_t scaled[LEVELS];
    for (int i = 0; i < LEVELS; i += LANES) v_store_bf16(scaled + i, v_mul(v_load(levels + i), v_set(scale)));
    const uint8x16x2_t halves = vld2q_u8(reinterpret_cast<const uint8_t *>(scaled));
    for (int i = 0; i < LEVELS_BLOCK / 2; i += 16, out += 32) {
        const B v = b_load(quants + i), even = b_take<4, 15>(v), odd = b_take<0, 15>(v);
        const uint8x16x4_t bytes = {{vqtbl1q_u8(halves.val[0], even), vqtbl1q_u8(halves.val[1], even),
                                     vqtbl1q_u8(halves.val[0], odd), vqtbl1q_u8(halves.val[1], odd)}};
        vst4q_u8(reinterpret_cast<uint8_t *>(out), bytes);
    }
}

struct Rounded {
    int16x8_t q[4]; // 32 integers from -top to top
    float scale;
};

inline Rounded round_block(const float *x, float top) {
    V v[8], size = v_zero();
    for (int i = 0; i < 8; i++) v[i] = v_load(x + 4 * i), size = v_max(size, vabsq_f32(v[i]));
    const float largest = vmaxnmvq_f32(size);
    const V inverse = v_set(largest > SMALLEST ? top / largest : 0.0f);
    const auto round = [&](int i) { return vqmovn_s32(vcvtnq_s32_f32(v_mul(v[i], inverse))); };
    Rounded rounded;
    for (int i = 0; i < 4; i++) rounded.q[i] = vcombine_s16(round(2 * i), round(2 * i + 1));
    rounded.scale = largest > SMALLEST ? largest / top : 0.0f;
    return rounded;
}

void quantize_block(const float *x, int8_t *quants, float *scale, int32_t *sums) {
    const Rounded rounded = round_block(x, 127.0f);
    for (int half = 0; half < 2; half++) {
        const int16x8_t a = rounded.q[2 * half], b = rounded.q[2 * half + 1];
        vst1q_s8(quants + 16 * half, vcombine_s8(vqmovn_s16(a), vqmovn_s16(b)));
        sums[half] = vaddvq_s16(vaddq_s16(a, b));
    }
    *scale = rounded.scale;
}

uint64_t sum_bytes(const uint8_t *bytes, size_t n) {
    uint64x2_t total = vdupq_n_u64(0);
    size_t at = 0;
    for (; at + 64 <= n; at += 64) {
        uint16x8_t pairs = vpaddlq_u8(vld1q_u8(bytes + at));
        for (int i = 16; i < 64; i += 16) pairs = vpadalq_u8(pairs, vld1q_u8(bytes + at + i));
        total = vpadalq_u32(total, vpaddlq_u16(pairs));
    }
    uint64_t sum = vaddvq_u64(total);
    for (; at < n; at++) sum += bytes[at];
    return sum;
}

void turn_8(const uint16_t *rows, size_t stride, float *out, size_t distance) {
    uint16x8_t row[8];
    uint32x4_t pair[8];
    uint64x2_t four[8];
    for (int r = 0; r < 8; r++) row[r] = vld1q_u16(rows + r * stride);
    for (int r = 0; r < 8; r += 2) { // columns 0 2 4 6 of two rows, and 1 3 5 7
        pair[r] = vreinterpretq_u32_u16(vtrn1q_u16(row[r], row[r + 1]));
        pair[r + 1] = vreinterpretq_u32_u16(vtrn2q_u16(row[r], row[r + 1]));
    }
    for (int r = 0; r < 8; r += 4)
        for (int i = 0; i < 2; i++) { // columns i and 4 + i of four rows, and 2 + i and 6 + i
            four[r + i] = vreinterpretq_u64_u32(vtrn1q_u32(pair[r + i], pair[r + i + 2]));
            four[r + i + 2] = vreinterpretq_u64_u32(vtrn2q_u32(pair[r + i], pair[r + i + 2]));
        }
    for (int i = 0; i < 4; i++)
        for (int half = 0; half < 2; half++) {
            const uint64x2_t both = half ? vtrn2q_u64(four[i], four[4 + i]) : vtrn1q_u64(four[i], four[4 + i]);
            const uint16x8_t column = vreinterpretq_u16_u64(both);
            float *to = out + (4 * half + i) * distance;
            vst1q_f32(to, vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(column), 16)));
            vst1q_f32(to + 4, vreinterpretq_f32_u32(vshll_high_n_u16(column, 16)));
        }
}

} // namespace
} // namespace m7b
