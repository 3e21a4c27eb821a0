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

constexpr int COLUMNS = REGISTERS == 32 ? 2 : 1; // vectors that R rows are multiplied by at once, as registers allow

// A key or a value as a ring holds it, LANES of its numbers at a time. Where `d` goes on from the last one within a
// block, its scale does too.
template <int TYPE> struct Kept;
template <> struct Kept<KV_BF16> {
    const uint16_t *numbers;
    void read(const uint8_t *at, int) { numbers = reinterpret_cast<const uint16_t *>(at); }
    V load(int d, bool) { return v_load_bf16(numbers + d); }
};
// A scale has eight bits, so products and what is taken from them are exact: quant * scale and no more.
template <> struct Kept<KV_Q8_0> {
    const uint8_t *quants, *scales;
    V scale, zero;
    void read(const uint8_t *at, int D) { quants = at, scales = at + D; }
    V load(int d, bool goes_on) {
        if (!goes_on) {
            scale = v_set_bf16(scales + d / BLOCK * 2);
            zero = v_mul(scale, v_set(-(QUANT_OFFSET + KV_ZERO)));
        }
        return v_fma(v_load_quants(quants + d), scale, zero);
    }
};

// Scores of R rows against N keys from the s-th on.
template <int R, int TYPE, int N> void score_keys(const Attention &a, int s, float (*scores)[PART]) {
    const int D = a.head_dim;
    const size_t stride = kv_bytes(TYPE, D);
    Kept<TYPE> keys[N];
    V sums[N > 1 ? 16 : R];
    M7B_UNROLL_TOKENS
    for (V &sum : sums) sum = v_zero();
    M7B_UNROLL_TOKENS
    for (int i = 0; i < N; i++) {
        keys[i].read(a.keys + (a.begin + s + i) * stride, D);
        const uint8_t *value = a.values + (a.begin + s + i) * stride; // comes while its key is scored
        for (size_t at = 0; at < stride; at += 64) __builtin_prefetch(value + at);
    }
    const auto add = [&](int d, bool goes_on) {
        M7B_UNROLL_TOKENS
        for (int i = 0; i < N; i++) {
            V k = keys[i].load(d, goes_on);
            M7B_UNROLL_TOKENS
            for (int r = 0; r < R; r++) sums[i * R + r] = v_fma(k, v_load(a.queries + r * D + d), sums[i * R + r]);
        }
    };
    int d = 0;
    for (; d + BLOCK <= D; d += BLOCK)
        M7B_UNROLL_TOKENS
        for (int at = 0; at < BLOCK; at += LANES) add(d + at, at > 0);
    for (; d < D; d += LANES) add(d, false);
    float dots[N > 1 ? 16 : R + 3];
    if constexpr (N > 1) v_sum16(sums, dots);
    else
        for (int r = 0; r < R; r += 4) v_sum4(sums + r, R - r, dots + r);
    for (int i = 0; i < N; i++)
        for (int r = 0; r < R; r++) scores[r][s + i] = dots[i * R + r];
}

// Scores of R rows against the first n slots, as many keys at once as registers hold the sums of.
template <int R, int TYPE> void score(const Attention &a, int n, float (*scores)[PART]) {
    constexpr int N = REGISTERS == 32 ? 16 / R : 1;
    int s = 0;
    for (; s + N <= n; s += N) score_keys<R, TYPE, N>(a, s, scores);
    for (; s < n; s++) score_keys<R, TYPE, 1>(a, s, scores);
}

// Sums over numbers [from, to) of turned keys, from slot s on.
template <int R, class Load>
void sum_turned(const Attention &a, int from, int to, Load load, V (&sums)[R][COLUMNS]) {
    for (auto &row : sums)
        for (V &sum : row) sum = v_zero();
    for (int d = from; d < to; d++) {
        V k[COLUMNS];
        for (int c = 0; c < COLUMNS; c++) k[c] = load(size_t(d) * PART + c * LANES);
        for (int r = 0; r < R; r++)
            for (int c = 0; c < COLUMNS; c++) sums[r][c] = v_fma(v_set(a.queries[r * a.head_dim + d]), k[c], sums[r][c]);
    }
}

// The same as `score` where the keys of a part are turned, so that a lane is a slot.
template <int R, int TYPE> void score_turned(const Attention &a, int n, float (*scores)[PART]) {
    const int D = a.head_dim;
    const uint8_t *part = a.turned + a.begin / PART * turned_bytes(TYPE, D);
    for (int s = 0; s < n; s += COLUMNS * LANES) {
        V sums[R][COLUMNS];
        if (TYPE == KV_BF16) {
            const uint16_t *keys = reinterpret_cast<const uint16_t *>(part) + s;
            sum_turned<R>(a, 0, D, [&](size_t at) { return v_load_bf16(keys + at); }, sums);
            for (int r = 0; r < R; r++)
                for (int c = 0; c < COLUMNS; c++) v_store(scores[r] + s + c * LANES, sums[r][c]);
            continue;
        }
        const float *scales = reinterpret_cast<const float *>(part + size_t(D) * PART) + s;
        for (int d = 0; d < D; d += BLOCK, scales += PART) {
            sum_turned<R>(a, d, smaller(D, d + BLOCK), [&](size_t at) { return v_load_i8(part + s + at); }, sums);
            for (int r = 0; r < R; r++)
                for (int c = 0; c < COLUMNS; c++) {
                    float *score = scores[r] + s + c * LANES;
                    v_store(score, v_fma(sums[r][c], v_load(scales + c * LANES), d ? v_load(score) : v_zero()));
                }
        }
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
template <int R, int W, int TYPE>
void mix_columns(const Attention &a, int d, int n, float (*weights)[PART], const float *fade) {
    V sums[R][W];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < W; c++) sums[r][c] = v_mul(v_load(a.mixed + r * a.head_dim + d + c * LANES), v_set(fade[r]));
    const size_t stride = kv_bytes(TYPE, a.head_dim);
    const uint8_t *values = a.values + a.begin * stride;
    for (int s = 0; s < n; s++, values += stride) {
        Kept<TYPE> kept;
        kept.read(values, a.head_dim);
        V value[W];
        for (int c = 0; c < W; c++) value[c] = kept.load(d + c * LANES, c * LANES % BLOCK > 0);
        for (int r = 0; r < R; r++)
            for (int c = 0; c < W; c++) sums[r][c] = v_fma(v_set(weights[r][s]), value[c], sums[r][c]);
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < W; c++) v_store(a.mixed + r * a.head_dim + d + c * LANES, sums[r][c]);
}

template <int R, int TYPE> void mix(const Attention &a, int n, float (*weights)[PART], const float *fade) {
    constexpr int W = R <= 4 ? 2 * COLUMNS : COLUMNS;
    int d = 0;
    for (; d + W * LANES <= a.head_dim; d += W * LANES) mix_columns<R, W, TYPE>(a, d, n, weights, fade);
    for (; d < a.head_dim; d += LANES) mix_columns<R, 1, TYPE>(a, d, n, weights, fade);
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
template <int R, int TYPE> void attend_rows(const Attention &a) {
    alignas(64) float scores[R][PART];
    if (!a.resumes) {
        for (int r = 0; r < R; r++) a.top[r] = -INFINITY, a.total[r] = 0;
        for (int i = 0; i < R * a.head_dim; i++) a.mixed[i] = 0;
    }
    const int n = seen(a);
    if (n == 0) return;
    if (a.turned) score_turned<R, TYPE>(a, n, scores);
    else score<R, TYPE>(a, n, scores);
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
    mix<R, TYPE>(a, n, scores, fade);
}

template <int TYPE> void attend_as(const Attention &a) {
    switch (a.rows) {
    case 1: return attend_rows<1, TYPE>(a);
    case 2: return attend_rows<2, TYPE>(a);
    case 3: return attend_rows<3, TYPE>(a);
    case 4: return attend_rows<4, TYPE>(a);
    case 5: return attend_rows<5, TYPE>(a);
    case 6: return attend_rows<6, TYPE>(a);
    case 7: return attend_rows<7, TYPE>(a);
    default: return attend_rows<8, TYPE>(a);
    }
}

void attend(const Attention &a) { return a.kv_type == KV_Q8_0 ? attend_as<KV_Q8_0>(a) : attend_as<KV_BF16>(a); }

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

void add_rows(const uint16_t *rows, size_t stride, int n_rows, const float *by, int n, float *y) {
    constexpr int AT_ONCE = 4;
    int i = 0;
    for (; i + AT_ONCE * LANES <= n; i += AT_ONCE * LANES) {
        V sums[AT_ONCE];
        for (int c = 0; c < AT_ONCE; c++) sums[c] = v_load(y + i + c * LANES);
        for (int r = 0; r < n_rows; r++) {
            const V factor = v_set(by[r]);
            for (int c = 0; c < AT_ONCE; c++)
                sums[c] = v_fma(factor, v_load_bf16(rows + r * stride + i + c * LANES), sums[c]);
        }
        for (int c = 0; c < AT_ONCE; c++) v_store(y + i + c * LANES, sums[c]);
    }
    for (; i < n; i++)
        for (int r = 0; r < n_rows; r++) y[i] += by[r] * from_bf16(rows[r * stride + i]);
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
