// How the products of a block join a sum, over what instruction_set.h lists.
#pragma once
#include "kernels.h"

namespace m7b {
namespace {

// The scales and minima of LANES rows for 32 values, or for the two groups of them.
template <int TYPE> struct Scales {
    V scale[2], minima[2];

    Scales(const uint8_t *heads, const uint8_t *smalls) {
        scale[0] = v_load_f16(heads);
        if constexpr (FORMATS[TYPE].has_minima) minima[0] = v_load_f16(heads + 2 * PANEL);
        if constexpr (TYPE == Q2_K) {
            scale[1] = v_mul(scale[0], v_load_nibble<0>(smalls + PANEL));
            scale[0] = v_mul(scale[0], v_load_nibble<0>(smalls));
            minima[1] = v_mul(minima[0], v_load_nibble<4>(smalls + PANEL));
            minima[0] = v_mul(minima[0], v_load_nibble<4>(smalls));
        } else if constexpr (n_groups(TYPE) == 2) {
            scale[1] = v_mul(scale[0], v_load_i8(smalls + PANEL));
            scale[0] = v_mul(scale[0], v_load_i8(smalls));
        } else if constexpr (FORMATS[TYPE].smalls > 0) {
            scale[0] = v_mul(scale[0], v_load_i8(smalls));
            if constexpr (FORMATS[TYPE].has_minima) minima[0] = v_mul(minima[0], v_load_i8(smalls + PANEL));
        }
    }
};

// `dots` are the whole-number products of LANES rows and token `i`, of each group. Every linear adds its blocks by this,
// in the order of the blocks: so each of them gives the same bits.
template <int TYPE>
inline void add_scaled(const V *dots, const Scales<TYPE> &scales, const Tile &tokens, size_t i, V &sum) {
    constexpr bool has_two = n_groups(TYPE) == 2;
    const V token_scale = v_set(tokens.scales[i]);
    if constexpr (has_two) sum = v_fma(v_fma(scales.scale[1], dots[1], v_mul(scales.scale[0], dots[0])), token_scale, sum);
    else sum = v_fma(dots[0], v_mul(scales.scale[0], token_scale), sum);
    if constexpr (!FORMATS[TYPE].has_minima) return;
    if constexpr (has_two)
        for (int g = 0; g < 2; g++) sum = v_fma(scales.minima[g], v_set(tokens.half_sums[2 * i + g]), sum);
    else sum = v_fma(scales.minima[0], v_set(tokens.sums[i]), sum);
}

} // namespace
} // namespace m7b
