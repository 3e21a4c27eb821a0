// Four float32 lanes of ARM's NEON, which every 64-bit ARM processor has.
#pragma once
#include <arm_neon.h>

#include <cstring>

namespace m7b {
namespace {

using V = float32x4_t;
constexpr int LANES = 4, REGISTERS = 32;

inline V v_zero() { return vdupq_n_f32(0); }
inline V v_set(float x) { return vdupq_n_f32(x); }
inline V v_load(const float *x) { return vld1q_f32(x); }
inline void v_store(float *x, V v) { vst1q_f32(x, v); }
inline V v_add(V a, V b) { return vaddq_f32(a, b); }
inline V v_sub(V a, V b) { return vsubq_f32(a, b); }
inline V v_mul(V a, V b) { return vmulq_f32(a, b); }
inline V v_div(V a, V b) { return vdivq_f32(a, b); }
inline V v_fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
inline V v_max(V a, V b) { return vmaxnmq_f32(a, b); }
inline V v_min(V a, V b) { return vminnmq_f32(a, b); }
inline V v_round(V a) { return vrndnq_f32(a); }
inline V v_load_bf16(const uint16_t *x) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(x), 16)); }
inline void v_store_bf16(uint16_t *x, V v) {
    const uint32x4_t bits = vreinterpretq_u32_f32(v), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, odd), vdupq_n_u32(0x7fff));
    vst1_u16(x, vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), rounded, vdupq_n_u32(0x7fc00000)), 16));
}
inline V v_load_f16(const uint8_t *x) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(x))); }
inline uint8x8_t load_four(const uint8_t *x) {
    uint32_t word;
    std::memcpy(&word, x, 4);
    return vreinterpret_u8_u32(vdup_n_u32(word));
}
inline V v_set_bf16(const uint8_t *x) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_dup_u16(reinterpret_cast<const uint16_t *>(x)), 16));
}
constexpr float QUANT_OFFSET = 0.0f;
inline V v_load_quants(const uint8_t *x) {
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(load_four(x)))));
}
inline V v_load_i8(const uint8_t *x) {
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(load_four(x))))));
}
template <int SHIFT> inline V v_load_nibble(const uint8_t *x) {
    const uint8x8_t four = load_four(x);
    const uint8x8_t nibbles = SHIFT ? vshr_n_u8(four, SHIFT ? SHIFT : 1) : vand_u8(four, vdup_n_u8(15));
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(nibbles))));
}
inline V v_scale(V a, V n) {
    const int32x4_t exponent = vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23);
    return vmulq_f32(a, vreinterpretq_f32_s32(exponent));
}
inline float v_sum(V v) { return vaddvq_f32(v); }
inline void v_sum4(const V *v, int n, float *sums) {
    const V a = vpaddq_f32(v[0], n > 1 ? v[1] : v[0]), b = n > 2 ? vpaddq_f32(v[2], n > 3 ? v[3] : v[2]) : a;
    vst1q_f32(sums, vpaddq_f32(a, b));
}
inline void v_sum16(const V *v, float *sums) {
    for (int i = 0; i < 16; i += 4) v_sum4(v + i, 4, sums + i);
}
inline V v_and_above(V value, V x, float limit) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(value), vcgtq_f32(x, vdupq_n_f32(limit))));
}

using B = uint8x16_t;
inline B b_load(const uint8_t *x) { return vld1q_u8(x); }
inline B b_or(B a, B b) { return vorrq_u8(a, b); }
template <int SHIFT, int MASK> inline B b_take(B a) {
    if constexpr (SHIFT > 0) a = vshrq_n_u8(a, SHIFT);
    if constexpr (SHIFT < 0) a = vshlq_n_u8(a, -SHIFT);
    constexpr bool is_clear = SHIFT > 0 && 255 >> (SHIFT > 0 ? SHIFT : 0) == MASK;
    return is_clear ? a : vandq_u8(a, vdupq_n_u8(MASK));
}
inline B b_look_up(const int8_t *table, B a) {
    return vqtbl1q_u8(vreinterpretq_u8_s8(vld1q_s8(table)), a);
}

} // namespace
} // namespace m7b
