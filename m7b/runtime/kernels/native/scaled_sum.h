// How the products of a block join a sum, over the vector type V that is included before.
#pragma once
#include "kernels.h"

namespace m7b {
namespace {

// `dot` are the whole-number products of LANES rows and one token, `scales` those of the rows. Every linear adds its
// blocks by this, in the order of the blocks: so each of them gives the same bits.
template <int TYPE>
inline void add_scaled(V dot, const uint8_t *scales, float token_scale, int32_t token_offset, V &sum) {
    sum = v_fma(dot, v_mul(v_load_f16(scales), v_set(token_scale)), sum);
    if (TYPE == Q4_1) sum = v_fma(v_load_f16(scales + 2 * PANEL), v_set(token_scale * (float(token_offset) / -8)), sum);
}

} // namespace
} // namespace m7b
