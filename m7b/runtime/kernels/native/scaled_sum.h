// How the products of a block join a sum, over the vector type V that is included before.
#pragma once
#include "kernels.h"

namespace m7b {
namespace {

// The scales of LANES rows for 32 values. `small` are those of their two groups where there are two, not yet multiplied
// by `scale`: sums of products under them are whole numbers below 2^24, which float32 holds.
template <int TYPE> struct Scales {
    V scale, small[2], minima[2];

    Scales(const uint8_t *heads, const uint8_t *smalls) {
        scale = v_load_f16(heads);
        if constexpr (FORMATS[TYPE].has_minima) minima[0] = v_load_f16(heads + 2 * PANEL);
        if constexpr (TYPE == Q2_K) {
            for (int i = 0; i < 2; i++) small[i] = v_load_nibble<0>(smalls + i * PANEL);
            minima[1] = v_mul(minima[0], v_load_nibble<4>(smalls + PANEL));
            minima[0] = v_mul(minima[0], v_load_nibble<4>(smalls));
        } else if constexpr (n_groups(TYPE) == 2) {
            for (int i = 0; i < 2; i++) small[i] = v_load_i8(smalls + i * PANEL);
        } else if constexpr (FORMATS[TYPE].smalls > 0) {
            scale = v_mul(scale, v_load_i8(smalls));
            if constexpr (FORMATS[TYPE].has_minima) minima[0] = v_mul(minima[0], v_load_i8(smalls + PANEL));
        }
    }
};

// `dots` are the whole-number products of LANES rows and token `i`, of each group. Every linear adds its blocks by this,
// in the order of the blocks: so each of them gives the same bits.
template <int TYPE>
inline void add_scaled(const V *dots, const Scales<TYPE> &scales, const Tile &tokens, size_t i, V &sum) {
    constexpr bool has_two = n_groups(TYPE) == 2;
    const V scale = v_mul(scales.scale, v_set(tokens.scales[i]));
    if constexpr (has_two) sum = v_fma(v_fma(scales.small[1], dots[1], v_mul(scales.small[0], dots[0])), scale, sum);
    else sum = v_fma(dots[0], scale, sum);
    if constexpr (!FORMATS[TYPE].has_minima) return;
    if constexpr (has_two)
        for (int g = 0; g < 2; g++) sum = v_fma(scales.minima[g], v_set(tokens.half_sums[2 * i + g]), sum);
    else sum = v_fma(scales.minima[0], v_set(tokens.sums[i]), sum);
}

} // namespace
} // namespace m7b
