// Panels of quantized weights times n tokens, over the Weights that are included before.
#pragma once
#include <utility>

#include "kernels.h"
#include "scaled_sum.h"

namespace m7b {
namespace {

// Adds the products of one block of a panel to the sums of N tokens; GROUP of them at a time, as registers allow.
template <int TYPE, int N>
inline void add_block(const Weights<TYPE> &weights, const uint8_t *scales, const int8_t *tokens,
                      const float *token_scales, const int32_t *offsets, V (*sums)[PARTS]) {
    constexpr int n = N < GROUP ? N : GROUP;
    V dots[n][PARTS];
    weights.template dot<n>(tokens, offsets, dots);
    for (int part = 0; part < PARTS; part++)
        M7B_UNROLL_TOKENS
        for (int i = 0; i < n; i++)
            add_scaled<TYPE>(dots[i][part], scales + 2 * LANES * part, token_scales[i], offsets[i], sums[i][part]);
    if constexpr (N > n)
        add_block<TYPE, N - n>(weights, scales, tokens + n * BLOCK * activation_bytes(TYPE), token_scales + n,
                               offsets + n, sums + n);
}

// Integers are exact and scales are applied block after block in one order, so a token's result does not depend on
// the tokens beside it, and decode agrees with prefill to the last bit.
//
// Few tokens are bound by memory, and a processor reads several streams at once faster than one: here each of P panels
// is two, its quants and its scales. (Zen 4, one token: 50 GB/s of Q4_0 with four panels, 32 with one. The loop over
// them is unrolled, or gcc reads two blocks of a panel crosswise: 39 GB/s of INT8 instead of 48.) Where products take
// as long as memory, neither waits for the other if what comes AHEAD is asked for meanwhile.
constexpr int AHEAD = 8; // blocks
template <int TYPE, int P, int N>
void multiply(const uint8_t *panels, size_t distance, int n_blocks, const Tile &tile, float *out) {
    V sums[P][N][PARTS];
    M7B_UNROLL_TOKENS
    for (int p = 0; p < P; p++)
        M7B_UNROLL_TOKENS
        for (int i = 0; i < N; i++)
            for (V &sum : sums[p][i]) sum = v_zero();
    for (int b = 0; b < n_blocks; b++) {
        const int at = b * N;
        M7B_UNROLL_TOKENS
        for (int p = 0; p < P; p++) {
            const uint8_t *panel = panels + p * distance, *scales = panel + size_t(n_blocks) * quant_bytes(TYPE);
            const uint8_t *quants = panel + size_t(b) * quant_bytes(TYPE);
            for (int i = 0; N > 1 && i < quant_bytes(TYPE); i += 64)
                __builtin_prefetch(quants + AHEAD * quant_bytes(TYPE) + i);
            add_block<TYPE, N>(Weights<TYPE>(quants), scales + size_t(b) * scale_bytes(TYPE),
                               tile.quants + size_t(at) * BLOCK * activation_bytes(TYPE), tile.scales + at,
                               tile.offsets + at, sums[p]);
        }
    }
    M7B_UNROLL_TOKENS
    for (int p = 0; p < P; p++)
        M7B_UNROLL_TOKENS
        for (int i = 0; i < N; i++)
            for (int part = 0; part < PARTS; part++) v_store(out + (p * N + i) * PANEL + LANES * part, sums[p][i][part]);
}

template <int TYPE, int N> constexpr Linear linear() {
    if constexpr (N > 0 && tile_size(N) == N) return multiply<TYPE, at_once(N), N>;
    return nullptr;
}
template <int TYPE, int... N> constexpr Linears linears(std::integer_sequence<int, N...>) {
    return {{linear<TYPE, N>()...}};
}
constexpr std::make_integer_sequence<int, MAX_TOKENS + 1> SIZES{};
constexpr Linears LINEARS[N_TYPES] = {linears<Q4_0>(SIZES), linears<Q4_1>(SIZES), linears<Q8_0>(SIZES),
                                      linears<INT8>(SIZES)};

} // namespace
} // namespace m7b
