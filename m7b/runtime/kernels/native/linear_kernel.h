// Panels of quantized weights times n tokens, over what instruction_set.h lists.
#pragma once
#include <array>
#include <utility>

#include "kernels.h"
#include "scaled_sum.h"

namespace m7b {
namespace {

constexpr int STRIP = PARTS * LANES, STRIPS = PANEL / STRIP; // rows that are multiplied at once, and how often

// Where the scales of 32 values of a strip begin.
struct ScalesAt {
    const uint8_t *heads, *smalls;
};

#ifndef M7B_INLINE_PARTS // where the compiler must be told
#define M7B_INLINE_PARTS
#endif

// Adds the products of one part of a strip to the sums of N tokens; TOGETHER of them at a time, as registers allow.
template <int TYPE, int N>
M7B_INLINE_PARTS inline void add_part(const Weights<TYPE> &weights, ScalesAt at, const Tile &tokens, V (*sums)[PARTS]) {
    constexpr int n = N < TOGETHER<TYPE> ? N : TOGETHER<TYPE>;
    V dots[n][PARTS][n_groups(TYPE)];
    weights.template dot<n>(tokens, dots);
    for (int part = 0; part < PARTS; part++) {
        const Scales<TYPE> scales(at.heads + 2 * LANES * part, at.smalls + LANES * part);
        M7B_UNROLL_TOKENS
        for (int i = 0; i < n; i++) add_scaled<TYPE>(dots[i][part], scales, tokens, i, sums[i][part]);
    }
    if constexpr (N > n) add_part<TYPE, N - n>(weights, at, tokens.from(n, activation_bytes(TYPE)), sums + n);
}

// Integers are exact and scales are applied block after block in one order, so a token's result does not depend on
// the tokens beside it, and decode agrees with prefill to the last bit.
//
// Few tokens are bound by memory, and a processor reads several streams at once faster than one: here each of P panels
// is two, its quants and its scales. (Zen 4, one token: 50 GB/s of Q4_0 with four panels, 32 with one. The loop over
// them is unrolled, or gcc reads two blocks of a panel crosswise: 39 GB/s of INT8 instead of 48.) Where products take
// as long as memory, neither waits for the other if what comes AHEAD is asked for meanwhile.
constexpr int AHEAD = 8; // parts
template <int TYPE, int P, int N, bool ASKS_AHEAD>
void multiply(const uint8_t *panels, size_t distance, int n_parts, const Tile &tile, float *out) {
    V sums[P * STRIPS][N][PARTS];
    M7B_UNROLL_TOKENS
    for (int s = 0; s < P * STRIPS; s++)
        M7B_UNROLL_TOKENS
        for (int i = 0; i < N; i++)
            for (V &sum : sums[s][i]) sum = v_zero();
    for (int b = 0; b < n_parts; b++) {
        const Tile tokens = tile.from(size_t(b) * N, activation_bytes(TYPE));
        // Where registers hold the sums of one token alone, those of several are better left to memory: told which strip
        // it is, the compiler keeps them in both, and takes minutes.
        if constexpr (STRIPS > 1 && N > 1) {
            for (int s = 0; s < P * STRIPS; s++) {
                M7B_FORGET(s);
                const uint8_t *panel = panels + s / STRIPS * distance, *scales = panel + size_t(n_parts) * quant_bytes(TYPE);
                const int row = s % STRIPS * STRIP;
                const ScalesAt at = {scales + head_at(TYPE, b) + 2 * row, scales + small_at(TYPE, b) + row};
                add_part<TYPE, N>(Weights<TYPE>(panel + size_t(b) * quant_bytes(TYPE) + 4 * row), at, tokens, sums[s]);
            }
            continue;
        }
        M7B_UNROLL_TOKENS
        for (int s = 0; s < P * STRIPS; s++) {
            const uint8_t *panel = panels + s / STRIPS * distance, *scales = panel + size_t(n_parts) * quant_bytes(TYPE);
            const uint8_t *quants = panel + size_t(b) * quant_bytes(TYPE);
            for (int i = 0; ASKS_AHEAD && s % STRIPS == 0 && i < quant_bytes(TYPE); i += 64)
                __builtin_prefetch(quants + AHEAD * quant_bytes(TYPE) + i);
            const int row = s % STRIPS * STRIP;
            const ScalesAt at = {scales + head_at(TYPE, b) + 2 * row, scales + small_at(TYPE, b) + row};
            add_part<TYPE, N>(Weights<TYPE>(quants + 4 * row), at, tokens, sums[s]);
        }
    }
    M7B_UNROLL_TOKENS
    for (int s = 0; s < P * STRIPS; s++)
        M7B_UNROLL_TOKENS
        for (int i = 0; i < N; i++)
            for (int part = 0; part < PARTS; part++)
                v_store(out + (s / STRIPS * N + i) * PANEL + s % STRIPS * STRIP + LANES * part, sums[s][i][part]);
}

template <int TYPE, int N, bool ONE_ASKS_AHEAD> constexpr Linear linear() {
    if constexpr (N > 0 && tile_size(N) == N) return multiply<TYPE, at_once(N), N, N != 1 || ONE_ASKS_AHEAD>;
    return nullptr;
}
template <int TYPE, bool ONE_ASKS_AHEAD, int... N> constexpr Linears linears(std::integer_sequence<int, N...>) {
    return {{linear<TYPE, N, ONE_ASKS_AHEAD>()...}};
}
using AllLinears = std::array<Linears, N_TYPES>;
template <bool ONE_ASKS_AHEAD, int... TYPE> constexpr AllLinears all_linears(std::integer_sequence<int, TYPE...>) {
    return {{linears<TYPE, ONE_ASKS_AHEAD>(std::make_integer_sequence<int, MAX_TOKENS + 1>())...}};
}
// Of every block type; whether one token asks ahead too depends on the processor.
template <bool ONE_ASKS_AHEAD>
constexpr AllLinears LINEARS = all_linears<ONE_ASKS_AHEAD>(std::make_integer_sequence<int, N_TYPES>());

} // namespace
} // namespace m7b
