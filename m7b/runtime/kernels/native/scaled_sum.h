// How the products of a block join a sum, over the vector type V that is included before.
#pragma once
#include "kernels.h"

namespace m7b {
namespace {

// The scales of LANES rows for 32 values. `small` are those of their two groups where there are two, not yet multiplied
// by `scale`: sums of products under them are whole numbers below 2^24, which float32 holds.
template <int TYPE> struct Scales {
    static constexpr bool has_minima = FORMATS[TYPE].has_minima;
    V scale, minimum, small[2], small_minima[2];

    Scales(const uint8_t *heads, const uint8_t *smalls) {
        scale = v_load_f16(heads);
        if constexpr (has_minima) minimum = v_load_f16(heads + 2 * PANEL);
        if constexpr (TYPE == Q2_K) {
            for (int i = 0; i < 2; i++)
                small[i] = v_load_nibble<0>(smalls + i * PANEL), small_minima[i] = v_load_nibble<4>(smalls + i * PANEL);
        } else if constexpr (n_groups(TYPE) == 2) {
            for (int i = 0; i < 2; i++) small[i] = v_load_i8(smalls + i * PANEL);
        } else if constexpr (FORMATS[TYPE].smalls > 0) {
            scale = v_mul(scale, v_load_i8(smalls));
            if constexpr (has_minima) minimum = v_mul(minimum, v_load_i8(smalls + PANEL));
        }
    }
};

// `dots` are the whole-number products of LANES rows and one token, of each group. Every linear adds its blocks by this,
// in the order of the blocks: so each of them gives the same bits.
template <int TYPE>
inline void add_scaled(const V *dots, const Scales<TYPE> &scales, float token_scale, int32_t offset, const int32_t *halves,
                       V &sum) {
    constexpr bool has_two = n_groups(TYPE) == 2;
    const V scale = v_mul(scales.scale, v_set(token_scale));
    if constexpr (has_two) sum = v_fma(v_fma(scales.small[1], dots[1], v_mul(scales.small[0], dots[0])), scale, sum);
    else sum = v_fma(dots[0], scale, sum);
    if constexpr (FORMATS[TYPE].has_minima && has_two) {
        const V first = v_mul(scales.small_minima[0], v_set(float(halves[0]) / -8));
        const V both = v_fma(scales.small_minima[1], v_set(float(halves[1]) / -8), first);
        sum = v_fma(both, v_mul(scales.minimum, v_set(token_scale)), sum);
    } else if constexpr (FORMATS[TYPE].has_minima) {
        sum = v_fma(scales.minimum, v_set(token_scale * (float(offset) / -8)), sum);
    }
}

} // namespace
} // namespace m7b
