// Any 64-bit ARM: 4 rows a vector, products of 8-bit integers by smull and smlal.
#include "kernels.h"
#if defined(__aarch64__)
#if !defined(__clang__)
#pragma GCC optimize("no-schedule-insns") // which asks for more registers than there are
#endif
#include "neon_shared.h"

namespace m7b {
namespace {

constexpr int PARTS = 2;
template <int TYPE> constexpr int TOGETHER = 4 / n_groups(TYPE);

// 32 values of 8 rows. Words of a token are loaded into all lanes.
template <int TYPE> struct Weights {
    static constexpr int GROUPS = n_groups(TYPE), WORDS = 8 / GROUPS;
    // As many products as 16 bits hold are added up first: of 6 bits and 127 four, in two groups.
    static constexpr int AT_ONCE = is_signed(TYPE) ? 2 : WORDS;
    B w[PARTS][8];

    M7B_ALWAYS_INLINE explicit Weights(const uint8_t *quants) {
        for (int part = 0; part < PARTS; part++) load_words<TYPE, 0, 8>(quants + 16 * part, w[part]);
    }

    template <int N> M7B_ALWAYS_INLINE void dot(const Tile &tokens, V (*dots)[PARTS][GROUPS]) const {
        for (int i = 0; i < N; i++)
            for (int g = 0; g < GROUPS; g++) {
                const int32_t sum = GROUPS == 1 ? tokens.offsets[i] : tokens.half_offsets[2 * i + g];
                const int32x4_t offset = vdupq_n_s32(sum * FORMATS[TYPE].offset / 8); // of -8 times the sum
                int32x4_t low[PARTS], high[PARTS]; // of two rows each, two sums a row
                for (int first = 0; first < WORDS; first += AT_ONCE)
                    add_words(tokens.quants + BLOCK * i, WORDS * g + first, first == 0, low, high);
                for (int part = 0; part < PARTS; part++)
                    dots[i][part][g] = vcvtq_f32_s32(vaddq_s32(vpaddq_s32(low[part], high[part]), offset));
            }
    }

    M7B_ALWAYS_INLINE void add_words(const int8_t *token, int first, bool begins, int32x4_t *low, int32x4_t *high) const {
        int16x8_t products[PARTS][2];
        for (int j = first; j < first + AT_ONCE; j++) {
            const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(load<int32_t>(token + 4 * j)));
            for (int part = 0; part < PARTS; part++) {
                const int8x16_t v = vreinterpretq_s8_u8(w[part][j]);
                int16x8_t *p = products[part];
                p[0] = j == first ? vmull_s8(vget_low_s8(v), vget_low_s8(x)) : vmlal_s8(p[0], vget_low_s8(v), vget_low_s8(x));
                p[1] = j == first ? vmull_high_s8(v, x) : vmlal_high_s8(p[1], v, x);
            }
        }
        for (int part = 0; part < PARTS; part++) {
            low[part] = begins ? vpaddlq_s16(products[part][0]) : vpadalq_s16(low[part], products[part][0]);
            high[part] = begins ? vpaddlq_s16(products[part][1]) : vpadalq_s16(high[part], products[part][1]);
        }
    }
};

// Activations of 16 bits times weights that are widened: a sum for each value of a word.
template <> struct Weights<Q8_0> {
    const uint8_t *quants;

    explicit Weights(const uint8_t *quants) : quants(quants) {}

    template <int N> M7B_ALWAYS_INLINE void dot(const Tile &tokens, V (*dots)[PARTS][1]) const {
        for (int part = 0; part < PARTS; part++) {
            int32x4_t sums[N][4]; // of each row
            for (auto &rows : sums)
                for (int32x4_t &sum : rows) sum = vdupq_n_s32(0);
            for (int j = 0; j < 8; j++) {
                const int8x16_t v = load<int8x16_t>(quants + 64 * j + 16 * part);
                const int16x8_t a = vmovl_s8(vget_low_s8(v)), b = vmovl_high_s8(v);
                for (int i = 0; i < N; i++) {
                    const int16x8_t x = vreinterpretq_s16_s64(vdupq_n_s64(load<int64_t>(tokens.quants + 2 * BLOCK * i + 8 * j)));
                    sums[i][0] = vmlal_s16(sums[i][0], vget_low_s16(a), vget_low_s16(x));
                    sums[i][1] = vmlal_high_s16(sums[i][1], a, x);
                    sums[i][2] = vmlal_s16(sums[i][2], vget_low_s16(b), vget_low_s16(x));
                    sums[i][3] = vmlal_high_s16(sums[i][3], b, x);
                }
            }
            for (int i = 0; i < N; i++)
                dots[i][part][0] = vcvtq_f32_s32(vpaddq_s32(vpaddq_s32(sums[i][0], sums[i][1]), vpaddq_s32(sums[i][2], sums[i][3])));
        }
    }
};

void quantize_block_16(const float *x, int16_t *quants, float *scale) {
    const Rounded rounded = round_block(x, 32767.0f);
    for (int i = 0; i < 4; i++) vst1q_s16(quants + 8 * i, rounded.q[i]);
    *scale = rounded.scale;
}

} // namespace
} // namespace m7b

#include "instruction_set.h"
#include "dense_kernel.h"

namespace m7b {
const Kernels neon_kernels = with_dense(bring("neon"));
}
#endif
