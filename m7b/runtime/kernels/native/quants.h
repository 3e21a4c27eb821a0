// Words of quants out of the planes of a panel, over the vectors B that instruction_set.h lists.
#pragma once
#include <utility>

#include "formats.h"

namespace m7b {
namespace {

// Word J of LANES rows, whose lanes begin at `quants`. Bytes are unsigned, or what they stand for where that is signed.
template <int TYPE, int J> inline B load_word(const uint8_t *quants) {
    constexpr int PLANE = 4 * PANEL, BITS = FORMATS[TYPE].bits;
    if constexpr (BITS == 8) return b_load(quants + PLANE * J);
    B low;
    if constexpr (BITS >= 4) low = b_take<J / 4 * 4, 15>(b_load(quants + PLANE * (J % 4)));
    else low = b_take<J % 4 * 2, 3>(b_load(quants + PLANE * (J / 4)));
    if constexpr (FORMATS[TYPE].has_levels) return b_look_up(IQ4_LEVELS, low);
    constexpr int DONE = BITS < 4 ? 2 : 4; // bits, and planes
    if constexpr (BITS == DONE) return low;
    if constexpr (BITS == 6) return b_or(low, b_take<J % 4 * 2 - 4, 0x30>(b_load(quants + PLANE * (4 + J / 4))));
    return b_or(low, b_take<J - DONE, 1 << DONE>(b_load(quants + PLANE * DONE)));
}

template <int TYPE, int FIRST, int... J>
inline void load_words(const uint8_t *quants, B *words, std::integer_sequence<int, J...>) {
    ((words[J] = load_word<TYPE, FIRST + J>(quants)), ...);
}
// Words [FIRST, FIRST + N).
template <int TYPE, int FIRST, int N> inline void load_words(const uint8_t *quants, B *words) {
    load_words<TYPE, FIRST>(quants, words, std::make_integer_sequence<int, N>());
}

} // namespace
} // namespace m7b
