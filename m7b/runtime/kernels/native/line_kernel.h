// How well values are rounded under a scale and an offset, over what instruction_set.h lists.
#pragma once
#include <cmath>

#include "kernels.h"

namespace m7b {
namespace {

// The nearest level to each value: each step is taken where the value is beyond the middle of it.
inline V nearest_level(V x) {
    V level = v_set(IQ4_LEVELS[0]);
    for (int i = 1; i < 16; i++) {
        const int below = IQ4_LEVELS[i - 1], above = IQ4_LEVELS[i];
        level = v_add(level, v_and_above(v_set(float(above - below)), x, 0.5f * float(below + above)));
    }
    return level;
}

template <bool HAS_LEVELS>
void measure_line(const float *x, const float *weights, int n, Line line, const Grid &grid, Sums *sums) {
    const V inverse = v_set(std::fabs(line.scale) < SMALLEST ? 0 : 1 / line.scale);
    const V low = v_set(grid.low), high = v_set(grid.high), scale = v_set(-line.scale), offset = v_set(line.offset);
    V qq = v_zero(), q1 = v_zero(), rq = v_zero(), r1 = v_zero(), rr = v_zero();
    for (int i = 0; i < n; i += LANES) {
        const V moved = v_sub(v_load(x + i), offset), weight = v_load(weights + i), ratio = v_mul(moved, inverse);
        const V q = HAS_LEVELS ? nearest_level(ratio) : v_min(v_max(v_round(ratio), low), high);
        const V rest = v_fma(scale, q, moved), wq = v_mul(weight, q), wr = v_mul(weight, rest);
        qq = v_fma(wq, q, qq), q1 = v_add(q1, wq);
        rq = v_fma(wr, q, rq), r1 = v_add(r1, wr), rr = v_fma(wr, rest, rr);
    }
    *sums = {v_sum(qq), v_sum(q1), v_sum(rq), v_sum(r1), v_sum(rr)};
}

void measure_line(const float *x, const float *weights, int n, Line line, const Grid &grid, Sums *sums) {
    const auto measure = grid.has_levels ? measure_line<true> : measure_line<false>;
    measure(x, weights, n, line, grid, sums);
}

} // namespace
} // namespace m7b
