// Words of weights for the levels of NEON that have dot products, and one token's products by sdot.
#pragma once
#include "neon_shared.h"

namespace m7b {
namespace {

constexpr int PARTS = 2;
template <int TYPE> constexpr int TOGETHER = 2;

inline int32x4_t add_four_words(int32x4_t sum, const int8x16_t *w, int8x16_t x) {
    sum = vdotq_laneq_s32(sum, w[0], x, 0);
    sum = vdotq_laneq_s32(sum, w[1], x, 1);
    sum = vdotq_laneq_s32(sum, w[2], x, 2);
    return vdotq_laneq_s32(sum, w[3], x, 3);
}

// -offset times a sum of activations of which -8 times is given.
template <int TYPE> inline int32_t times_offset(int32_t sum) { return sum * FORMATS[TYPE].offset / 8; }

// 32 values of 8 rows as signed bytes, which may be more than they stand for.
//
// Activations of 16 bits are 32 low bytes, 128 less than they are, and 32 high ones: of a weight's products with these
// 256 times the high sum, the low sum and 128 times the sum of the weights are the whole.
template <int TYPE> struct Words {
    static constexpr int GROUPS = n_groups(TYPE);
    int8x16_t w[PARTS][8];
    int32x4_t rest[PARTS];

    M7B_ALWAYS_INLINE explicit Words(const uint8_t *quants) {
        for (int part = 0; part < PARTS; part++) {
            B words[8];
            load_words<TYPE, 0, 8>(quants + 16 * part, words);
            rest[part] = vdupq_n_s32(0);
            for (int j = 0; j < 8; j++) {
                w[part][j] = vreinterpretq_s8_u8(words[j]);
                if (TYPE == Q8_0) rest[part] = vdotq_s32(rest[part], w[part][j], vdupq_n_s8(1));
            }
            rest[part] = vshlq_n_s32(rest[part], 7);
        }
    }

    M7B_ALWAYS_INLINE void dot_one(const Tile &tokens, int i, V (*dots)[GROUPS]) const {
        const int8_t *token = tokens.quants + BLOCK * activation_bytes(TYPE) * i;
        int8x16_t x[4];
        for (int k = 0; k < 2 * activation_bytes(TYPE); k++) x[k] = load<int8x16_t>(token + 16 * k);
        for (int part = 0; part < PARTS; part++) {
            int32x4_t sums[GROUPS];
            if constexpr (TYPE == Q8_0) {
                const int32x4_t high = add_four_words(add_four_words(vdupq_n_s32(0), w[part], x[2]), w[part] + 4, x[3]);
                sums[0] = vaddq_s32(vshlq_n_s32(high, 8), rest[part]);
            } else {
                for (int g = 0; g < GROUPS; g++)
                    sums[g] = vdupq_n_s32(times_offset<TYPE>(GROUPS == 1 ? tokens.offsets[i] : tokens.half_offsets[2 * i + g]));
            }
            for (int half = 0; half < 2; half++)
                sums[half % GROUPS] = add_four_words(sums[half % GROUPS], w[part] + 4 * half, x[half]);
            for (int g = 0; g < GROUPS; g++) dots[part][g] = vcvtq_f32_s32(sums[g]);
        }
    }
};

void quantize_block_16(const float *x, int16_t *quants, float *scale) {
    const Rounded rounded = round_block(x, 32767.0f);
    int8_t *bytes = reinterpret_cast<int8_t *>(quants);
    for (int i = 0; i < 4; i++) {
        vst1_s8(bytes + 8 * i, veor_s8(vmovn_s16(rounded.q[i]), vdup_n_s8(-128)));
        vst1_s8(bytes + BLOCK + 8 * i, vshrn_n_s16(rounded.q[i], 8));
    }
    *scale = rounded.scale;
}

} // namespace
} // namespace m7b
