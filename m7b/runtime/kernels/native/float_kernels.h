// The kernels that compute in float32, over what instruction_set.h lists.
#pragma once
#include <cmath>

#include "kernels.h"
#include "numbers.h"

namespace m7b {
namespace {

// exp for x <= 88, to 2 units in the last place; below -87 it is 0.
inline V v_exp(V x) {
    V n = v_round(v_mul(v_max(x, v_set(-87.0f)), v_set(1.44269504f)));
    V r = v_fma(n, v_set(-0.693359375f), v_max(x, v_set(-87.0f)));
    r = v_fma(n, v_set(2.12194440e-4f), r);
    V p = v_set(1.9875691500e-4f);
    const float rest[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 0.5f};
    for (float c : rest) p = v_fma(p, r, v_set(c));
    return v_scale(v_add(v_fma(p, v_mul(r, r), r), v_set(1.0f)), n);
}

void widen(const uint16_t *x, size_t n, float *out) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) v_store(out + i, v_load_bf16(x + i));
    for (; i < n; i++) out[i] = from_bf16(x[i]);
}

void narrow(const float *x, size_t n, uint16_t *out) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) v_store_bf16(out + i, v_load(x + i));
    for (; i < n; i++) out[i] = to_bf16(x[i]);
}

// ROWS of a weight times N tokens, R rows at once as registers allow.
template <int R, int N> void rows_bf16(const uint16_t *w, size_t stride, int in, const float *x, float *out) {
    for (int first = 0; first < ROWS; first += R, w += R * stride) {
        V sums[N][R];
        for (auto &rows : sums)
            for (V &sum : rows) sum = v_zero();
        int k = 0;
        for (; k + LANES <= in; k += LANES)
            for (int r = 0; r < R; r++) {
                V row = v_load_bf16(w + r * stride + k);
                for (int i = 0; i < N; i++) sums[i][r] = v_fma(row, v_load(x + size_t(i) * in + k), sums[i][r]);
            }
        for (int i = 0; i < N; i++)
            for (int r = 0; r < R; r++) {
                float sum = v_sum(sums[i][r]);
                for (int j = k; j < in; j++) sum += from_bf16(w[r * stride + j]) * x[size_t(i) * in + j];
                out[ROWS * i + first + r] = sum;
            }
    }
}

void linear_bf16(const uint16_t *w, size_t stride, int in, const float *x, int n, float *out) {
    if (n == 4) return rows_bf16<4, 4>(w, stride, in, x, out);
    for (int i = 0; i < n; i++) rows_bf16<ROWS, 1>(w, stride, in, x + size_t(i) * in, out + ROWS * i);
}

constexpr int COLUMNS = LANES == 16 ? 2 : 1; // vectors that R rows are multiplied by at once, as registers allow

// Scores of R rows against the first n slots, key after key.
template <int R> void score(const Attention &a, int n, float (*scores)[PART]) {
    const int D = a.head_dim;
    for (int s = 0; s < n; s++) {
        const uint16_t *key = a.keys + size_t(a.begin + s) * D;
        const uint16_t *value = a.values + size_t(a.begin + s) * D; // comes while its key is scored
        for (int d = 0; d < D; d += 32) __builtin_prefetch(value + d);
        V sums[R];
        for (int r = 0; r < R; r++) sums[r] = v_zero();
        for (int d = 0; d < D; d += LANES) {
            V k = v_load_bf16(key + d);
            for (int r = 0; r < R; r++) sums[r] = v_fma(k, v_load(a.queries + r * D + d), sums[r]);
        }
        float dots[R + 3];
        for (int r = 0; r < R; r += 4) v_sum4(sums + r, R - r, dots + r);
        for (int r = 0; r < R; r++) scores[r][s] = dots[r];
    }
}

// The same where the keys of a part are turned, so that a lane is a slot: (D, PART).
template <int R> void score_turned(const Attention &a, int n, float (*scores)[PART]) {
    const int D = a.head_dim;
    const uint16_t *keys = a.turned + size_t(a.begin) * D;
    for (int s = 0; s < n; s += COLUMNS * LANES) {
        V sums[R][COLUMNS];
        for (auto &row : sums)
            for (V &sum : row) sum = v_zero();
        for (int d = 0; d < D; d++) {
            V k[COLUMNS];
            for (int c = 0; c < COLUMNS; c++) k[c] = v_load_bf16(keys + size_t(d) * PART + s + c * LANES);
            for (int r = 0; r < R; r++)
                for (int c = 0; c < COLUMNS; c++) sums[r][c] = v_fma(v_set(a.queries[r * D + d]), k[c], sums[r][c]);
        }
        for (int r = 0; r < R; r++)
            for (int c = 0; c < COLUMNS; c++) v_store(scores[r] + s + c * LANES, sums[r][c]);
    }
}

// Hides from a row of scores what its query does not see, of n slots from `begin` on, and returns the largest.
float hide(const Visible &visible, int begin, int n, float *scores) {
    int hidden = 0; // from here on, up to the next interval
    for (int i = 0; i < 2; i++) {
        const int from = larger(hidden, visible.from[i] - begin), to = smaller(n, visible.to[i] - begin);
        if (from >= to) continue;
        for (int s = hidden; s < from; s++) scores[s] = -INFINITY;
        hidden = to;
    }
    for (int s = hidden; s < PART; s++) scores[s] = -INFINITY;
    V tops = v_load(scores);
    for (int s = LANES; s < PART; s += LANES) tops = v_max(tops, v_load(scores + s));
    float lanes[LANES], top = -INFINITY;
    v_store(lanes, tops);
    for (float lane : lanes) top = lane > top ? lane : top;
    return top;
}

// mixed = mixed * fade + weights @ values, for R rows and W vectors from column d on.
template <int R, int W>
void mix_columns(const Attention &a, int d, int n, float (*weights)[PART], const float *fade) {
    V sums[R][W];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < W; c++) sums[r][c] = v_mul(v_load(a.mixed + r * a.head_dim + d + c * LANES), v_set(fade[r]));
    const uint16_t *values = a.values + size_t(a.begin) * a.head_dim + d;
    for (int s = 0; s < n; s++, values += a.head_dim) {
        V value[W];
        for (int c = 0; c < W; c++) value[c] = v_load_bf16(values + c * LANES);
        for (int r = 0; r < R; r++)
            for (int c = 0; c < W; c++) sums[r][c] = v_fma(v_set(weights[r][s]), value[c], sums[r][c]);
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < W; c++) v_store(a.mixed + r * a.head_dim + d + c * LANES, sums[r][c]);
}

template <int R> void mix(const Attention &a, int n, float (*weights)[PART], const float *fade) {
    constexpr int W = R <= 4 ? 2 * COLUMNS : COLUMNS;
    int d = 0;
    for (; d + W * LANES <= a.head_dim; d += W * LANES) mix_columns<R, W>(a, d, n, weights, fade);
    for (; d < a.head_dim; d += LANES) mix_columns<R, 1>(a, d, n, weights, fade);
}

// How many slots of the part are left without those at its end that no row sees.
int seen(const Attention &a) {
    int end = a.begin;
    for (int r = 0; r < a.rows; r++)
        for (int i = 0; i < 2; i++) {
            const Visible &visible = a.visible[r];
            const int last = smaller(a.end, visible.to[i]);
            if (larger(a.begin, visible.from[i]) < last) end = larger(end, last);
        }
    return end - a.begin;
}

// Softmax with a running maximum (arXiv 2112.05682): parts are scored, weighed and mixed in turn.
template <int R> void attend_rows(const Attention &a) {
    alignas(64) float scores[R][PART];
    if (!a.resumes) {
        for (int r = 0; r < R; r++) a.top[r] = -INFINITY, a.total[r] = 0;
        for (int i = 0; i < R * a.head_dim; i++) a.mixed[i] = 0;
    }
    const int n = seen(a);
    if (n == 0) return;
    if (a.turned) score_turned<R>(a, n, scores);
    else score<R>(a, n, scores);
    float fade[R];
    for (int r = 0; r < R; r++) {
        const float top_here = hide(a.visible[r], a.begin, n, scores[r]);
        const float top = top_here > a.top[r] ? top_here : a.top[r];
        fade[r] = a.top[r] == -INFINITY ? 0.0f : std::exp(a.top[r] - top);
        V total = v_zero(), shift = v_set(top == -INFINITY ? 0.0f : top);
        for (int s = 0; s < PART; s += LANES) {
            V x = v_sub(v_load(scores[r] + s), shift);
            V weight = v_and_above(v_exp(x), x, -87.0f);
            v_store(scores[r] + s, weight);
            total = v_add(total, weight);
        }
        a.total[r] = a.total[r] * fade[r] + v_sum(total);
        a.top[r] = top;
    }
    mix<R>(a, n, scores, fade);
}

void attend(const Attention &a) {
    switch (a.rows) {
    case 1: return attend_rows<1>(a);
    case 2: return attend_rows<2>(a);
    case 3: return attend_rows<3>(a);
    case 4: return attend_rows<4>(a);
    case 5: return attend_rows<5>(a);
    case 6: return attend_rows<6>(a);
    case 7: return attend_rows<7>(a);
    default: return attend_rows<8>(a);
    }
}

void rms_norm(const float *x, const float *weight, int dim, float eps, bool rounds, float *y) {
    V squares = v_zero();
    int i = 0;
    for (; i + LANES <= dim; i += LANES) squares = v_fma(v_load(x + i), v_load(x + i), squares);
    float sum = v_sum(squares);
    for (; i < dim; i++) sum += x[i] * x[i];
    float scale = 1.0f / std::sqrt(sum / float(dim) + eps);
    for (i = 0; i < dim; i++) {
        float scaled = x[i] * scale;
        y[i] = (rounds ? from_bf16(to_bf16(scaled)) : scaled) * weight[i];
    }
}

void add(uint16_t *h, const uint16_t *y, size_t n) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) v_store_bf16(h + i, v_add(v_load_bf16(h + i), v_load_bf16(y + i)));
    for (; i < n; i++) h[i] = to_bf16(from_bf16(h[i]) + from_bf16(y[i]));
}

void swiglu(const float *gate, const float *up, int n, float *y) {
    int i = 0;
    for (; i + LANES <= n; i += LANES) {
        V g = v_load(gate + i);
        V e = v_exp(v_min(v_sub(v_zero(), g), v_set(88.0f)));
        v_store(y + i, v_mul(v_div(g, v_add(v_set(1.0f), e)), v_load(up + i)));
    }
    for (; i < n; i++) y[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

} // namespace
} // namespace m7b
