// Panels of quantized weights times n tokens, over the Weights that are included before.
#pragma once
#include "kernels.h"
#include "scaled_sum.h"

namespace m7b {
namespace {

// Adds the products of one block of one token; `scales` are those of the rows of `weights`.
template <int TYPE>
inline void add_block(const Weights<TYPE> &weights, const uint8_t *scales, const int8_t *token, float token_scale,
                      int32_t token_offset, V &sum) {
    add_scaled<TYPE>(weights.dot(token, token_offset), scales, token_scale, token_offset, sum);
}

// Integers are exact and scales are applied block after block in one order, so a token's result does
// not depend on the tokens beside it, and decode agrees with prefill to the last bit.
template <int TYPE, int N> void linear_tokens(const uint8_t *panel, int n_blocks, const Tile &tile, float *out) {
    V sums[N][PANEL / LANES];
    M7B_UNROLL_TOKENS
    for (int i = 0; i < N; i++)
        for (V &sum : sums[i]) sum = v_zero();
    const uint8_t *quants = panel, *scales = panel + size_t(n_blocks) * quant_bytes(TYPE);
    for (int b = 0; b < n_blocks; b++, quants += quant_bytes(TYPE), scales += scale_bytes(TYPE)) {
        for (int part = 0; part < PANEL / LANES; part++) {
            const Weights<TYPE> weights(quants, part);
            M7B_UNROLL_TOKENS
            for (int i = 0; i < N; i++) {
                const int at = b * N + i;
                add_block<TYPE>(weights, scales + 2 * LANES * part,
                                tile.quants + size_t(at) * BLOCK * activation_bytes(TYPE), tile.scales[at],
                                tile.offsets[at], sums[i][part]);
            }
        }
    }
    M7B_UNROLL_TOKENS
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

// One token is bound by memory, and a processor reads several streams at once faster than one: here each of N
// panels is two, its quants and its scales. (Zen 4: 50 GB/s of Q4_0 with four panels, 32 with one. The loop over them
// is unrolled, or gcc reads two blocks of a panel crosswise: 39 GB/s of INT8 instead of 48.)
template <int TYPE, int N>
void panels_n(const uint8_t *panels, size_t distance, int n_blocks, const Tile &tile, float *out) {
    V sums[N][PANEL / LANES];
    M7B_UNROLL_TOKENS
    for (int i = 0; i < N; i++)
        for (V &sum : sums[i]) sum = v_zero();
    for (int b = 0; b < n_blocks; b++) {
        const int8_t *token = tile.quants + size_t(b) * BLOCK * activation_bytes(TYPE);
        M7B_UNROLL_TOKENS
        for (int i = 0; i < N; i++) {
            const uint8_t *quants = panels + i * distance + size_t(b) * quant_bytes(TYPE);
            const uint8_t *scales = panels + i * distance + size_t(n_blocks) * quant_bytes(TYPE) + b * scale_bytes(TYPE);
            for (int part = 0; part < PANEL / LANES; part++)
                add_block<TYPE>(Weights<TYPE>(quants, part), scales + 2 * LANES * part, token, tile.scales[b],
                                tile.offsets[b], sums[i][part]);
        }
    }
    M7B_UNROLL_TOKENS
    for (int i = 0; i < N; i++)
        for (int part = 0; part < PANEL / LANES; part++) v_store(out + PANEL * i + LANES * part, sums[i][part]);
}

template <int TYPE>
void panels(const uint8_t *panels, int n, size_t distance, int n_blocks, const Tile &tile, float *out) {
    if (n == AT_ONCE) return panels_n<TYPE, AT_ONCE>(panels, distance, n_blocks, tile, out);
    for (int i = 0; i < n; i++) panels_n<TYPE, 1>(panels + i * distance, 0, n_blocks, tile, out + PANEL * i);
}

void linear_1(int type, const uint8_t *from, int n, size_t distance, int n_blocks, const Tile &tile, float *out) {
    if (type == Q4_0) return panels<Q4_0>(from, n, distance, n_blocks, tile, out);
    if (type == Q4_1) return panels<Q4_1>(from, n, distance, n_blocks, tile, out);
    if (type == INT8) return panels<INT8>(from, n, distance, n_blocks, tile, out);
    panels<Q8_0>(from, n, distance, n_blocks, tile, out);
}

void linear(int type, const uint8_t *panel, int n_blocks, const Tile &tile, int n, float *out) {
    if (type == Q4_0) return linear_n<Q4_0>(panel, n_blocks, tile, n, out);
    if (type == Q4_1) return linear_n<Q4_1>(panel, n_blocks, tile, n, out);
    if (type == INT8) return linear_n<INT8>(panel, n_blocks, tile, n, out);
    linear_n<Q8_0>(panel, n_blocks, tile, n, out);
}

} // namespace
} // namespace m7b
