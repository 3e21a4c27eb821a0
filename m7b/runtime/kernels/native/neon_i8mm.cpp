// ARM with products of matrices of 8-bit integers: two tokens times two rows by smmla.
#include "kernels.h"
#if defined(M7B_HAS_I8MM)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod,i8mm"))), apply_to = function)
#else
#pragma GCC optimize("no-schedule-insns") // which asks for more registers than there are
#pragma GCC target("arch=armv8.2-a+dotprod+i8mm")
#endif
#include "neon_words.h"

namespace m7b {
namespace {

inline int8x16_t join(int8x16_t a, int8x16_t b, bool is_high) {
    const int32x4_t x = vreinterpretq_s32_s8(a), y = vreinterpretq_s32_s8(b);
    return vreinterpretq_s8_s32(is_high ? vzip2q_s32(x, y) : vzip1q_s32(x, y));
}
inline int32x4_t twice(int32x4_t v, bool is_high) {
    const int64x2_t halves = vreinterpretq_s64_s32(v);
    return vreinterpretq_s32_s64(is_high ? vdupq_laneq_s64(halves, 1) : vdupq_laneq_s64(halves, 0));
}

// Two words each of two rows in a vector: the first two of a part's four, and the others.
template <int TYPE> struct Weights : Words<TYPE> {
    using Words<TYPE>::w, Words<TYPE>::rest;
    static constexpr int GROUPS = n_groups(TYPE), BYTES = BLOCK * activation_bytes(TYPE);
    int8x16_t joined[PARTS][2][4];

    M7B_ALWAYS_INLINE explicit Weights(const uint8_t *quants) : Words<TYPE>(quants) {
        for (int part = 0; part < PARTS; part++)
            for (int k = 0; k < 4; k++)
                for (int pair = 0; pair < 2; pair++) joined[part][pair][k] = join(w[part][2 * k], w[part][2 * k + 1], pair);
    }

    template <int N> M7B_ALWAYS_INLINE void dot(const Tile &tokens, V (*dots)[PARTS][GROUPS]) const {
        if constexpr (N == 1) this->dot_one(tokens, 0, dots[0]);
        else dot_two(tokens, dots);
    }

    M7B_ALWAYS_INLINE void dot_two(const Tile &tokens, V (*dots)[PARTS][GROUPS]) const {
        int8x16_t x[2 * BYTES / 16];
        for (int k = 0; k < 2 * BYTES / 16; k++) x[k] = load<int8x16_t>(tokens.quants + 16 * k);
        for (int part = 0; part < PARTS; part++)
            for (int g = 0; g < GROUPS; g++) {
                int32x4_t sums[2]; // of each pair of rows: the first token's, then the second's
                for (int pair = 0; pair < 2; pair++) {
                    const int8x16_t *words = joined[part][pair];
                    if constexpr (TYPE == Q8_0) {
                        int32x4_t high = vdupq_n_s32(0);
                        for (int k = 0; k < 4; k++) high = vmmlaq_s32(high, x[4 + k], words[k]);
                        sums[pair] = vaddq_s32(vshlq_n_s32(high, 8), twice(rest[part], pair));
                    } else {
                        sums[pair] = vcombine_s32(offset(tokens, 0, g), offset(tokens, 1, g));
                    }
                    for (int k = 4 / GROUPS * g; k < 4 / GROUPS * (g + 1); k++) sums[pair] = vmmlaq_s32(sums[pair], x[k], words[k]);
                }
                const int64x2_t first = vreinterpretq_s64_s32(sums[0]), second = vreinterpretq_s64_s32(sums[1]);
                dots[0][part][g] = vcvtq_f32_s32(vreinterpretq_s32_s64(vzip1q_s64(first, second)));
                dots[1][part][g] = vcvtq_f32_s32(vreinterpretq_s32_s64(vzip2q_s64(first, second)));
            }
    }

    static int32x2_t offset(const Tile &tokens, int i, int g) {
        return vdup_n_s32(times_offset<TYPE>(GROUPS == 1 ? tokens.offsets[i] : tokens.half_offsets[2 * i + g]));
    }
};

// Two tokens' bytes become one's first eight, the other's first eight, and so on; a last one that is alone stays.
void pair(int8_t *quants, int n, int n_bytes) {
    const int size = BLOCK * n_bytes;
    for (int8_t *a = quants; a + 2 * size <= quants + n * size; a += 2 * size) {
        int64x2_t first[4], second[4];
        for (int k = 0; k < size / 16; k++) {
            first[k] = vreinterpretq_s64_s8(vld1q_s8(a + 16 * k));
            second[k] = vreinterpretq_s64_s8(vld1q_s8(a + size + 16 * k));
        }
        for (int k = 0; k < size / 16; k++) {
            vst1q_s8(a + 32 * k, vreinterpretq_s8_s64(vzip1q_s64(first[k], second[k])));
            vst1q_s8(a + 32 * k + 16, vreinterpretq_s8_s64(vzip2q_s64(first[k], second[k])));
        }
    }
}

constexpr Kernels with_pairs(Kernels k) {
    k.pair = pair;
    return k;
}

} // namespace
} // namespace m7b

#include "instruction_set.h"
#include "dense_kernel.h"

namespace m7b {
const Kernels i8mm_kernels = with_pairs(with_dense(bring("i8mm")));
}
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
