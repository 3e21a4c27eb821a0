// One panel of quantized weights times n tokens, over the Weights that are included before.
#pragma once
#include "kernels.h"

namespace m7b {
namespace {

// One token is bound by memory: asking for what comes four blocks later (1024 bytes of 4-bit quants) reads a
// tenth faster than the processor's own guesses.
constexpr int AHEAD = 1024;

template <int TYPE> void prefetch(const uint8_t *quants, const uint8_t *scales) {
    for (int i = 0; i < quant_bytes(TYPE); i += 64) __builtin_prefetch(quants + AHEAD + i);
    __builtin_prefetch(scales + AHEAD / quant_bytes(TYPE) * scale_bytes(TYPE));
}

// Integers are exact and scales are applied block after block in one order, so a token's result does
// not depend on the tokens beside it, and decode agrees with prefill to the last bit.
template <int TYPE, int N> void linear_tokens(const uint8_t *panel, int n_blocks, const Tile &tile, float *out) {
    V sums[N][PANEL / LANES];
    for (int i = 0; i < N; i++)
        for (V &sum : sums[i]) sum = v_zero();
    const uint8_t *quants = panel, *scales = panel + size_t(n_blocks) * quant_bytes(TYPE);
    for (int b = 0; b < n_blocks; b++, quants += quant_bytes(TYPE), scales += scale_bytes(TYPE)) {
        if (N == 1) prefetch<TYPE>(quants, scales);
        for (int part = 0; part < PANEL / LANES; part++) {
            const Weights<TYPE> weights(quants, part);
            const V scale = v_load_f16(scales + 2 * LANES * part);
            M7B_UNROLL_TOKENS
            for (int i = 0; i < N; i++) {
                const int at = b * N + i;
                V &sum = sums[i][part];
                V dot = weights.dot(tile.quants + size_t(at) * BLOCK * activation_bytes(TYPE), tile.sums[at]);
                sum = v_fma(dot, v_mul(scale, v_set(tile.scales[at])), sum);
                if (TYPE == Q4_1)
                    sum = v_fma(v_load_f16(scales + 2 * PANEL + 2 * LANES * part),
                                v_set(tile.scales[at] * float(tile.sums[at])), sum);
            }
        }
    }
    for (int i = 0; i < N; i++)
        for (int part = 0; part < PANEL / LANES; part++) v_store(out + PANEL * i + LANES * part, sums[i][part]);
}

#ifndef M7B_OWN_LINEAR_16
template <int TYPE> void linear_16(const uint8_t *panel, int n_blocks, const Tile &tile, float *out) {
    linear_tokens<TYPE, 16>(panel, n_blocks, tile, out);
}
#endif

template <int TYPE> void linear_n(const uint8_t *panel, int n_blocks, const Tile &tile, int n, float *out) {
    if (n == 16) return linear_16<TYPE>(panel, n_blocks, tile, out);
    if (n == 4) return linear_tokens<TYPE, 4>(panel, n_blocks, tile, out);
    linear_tokens<TYPE, 1>(panel, n_blocks, tile, out);
}

void linear(int type, const uint8_t *panel, int n_blocks, const Tile &tile, int n, float *out) {
    if (type == Q4_0) return linear_n<Q4_0>(panel, n_blocks, tile, n, out);
    if (type == Q4_1) return linear_n<Q4_1>(panel, n_blocks, tile, n, out);
    if (type == INT8) return linear_n<INT8>(panel, n_blocks, tile, n, out);
    linear_n<Q8_0>(panel, n_blocks, tile, n, out);
}

} // namespace
} // namespace m7b
