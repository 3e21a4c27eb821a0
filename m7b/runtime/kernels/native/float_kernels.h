// The kernels that compute in float32, over the vector type V that is included before.
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

template <int N> void linear_bf16_tokens(const uint16_t *w, size_t stride, int in, const float *x, float *out) {
    V sums[N][4];
    for (int i = 0; i < N; i++)
        for (int r = 0; r < 4; r++) sums[i][r] = v_zero();
    int k = 0;
    for (; k + LANES <= in; k += LANES)
        for (int r = 0; r < 4; r++) {
            V row = v_load_bf16(w + r * stride + k);
            for (int i = 0; i < N; i++) sums[i][r] = v_fma(row, v_load(x + size_t(i) * in + k), sums[i][r]);
        }
    for (int i = 0; i < N; i++)
        for (int r = 0; r < 4; r++) {
            float sum = v_sum(sums[i][r]);
            for (int j = k; j < in; j++) sum += from_bf16(w[r * stride + j]) * x[size_t(i) * in + j];
            out[4 * i + r] = sum;
        }
}

void linear_bf16(const uint16_t *w, size_t stride, int in, const float *x, int n, float *out) {
    if (n == 4) return linear_bf16_tokens<4>(w, stride, in, x, out);
    for (int i = 0; i < n; i++) linear_bf16_tokens<1>(w, stride, in, x + size_t(i) * in, out + 4 * i);
}

constexpr int PART = 128; // slots between two corrections of the running maximum

// Scores of R rows against slots [begin, end), and the largest of each row.
template <int R> void score_part(const Attention &a, int begin, int end, float (*scores)[PART], float *tops) {
    const int D = a.head_dim;
    for (int r = 0; r < R; r++) tops[r] = -INFINITY;
    for (int s = begin; s < end; s++) {
        const uint16_t *key = a.keys + size_t(s) * D;
        V sums[R];
        for (int r = 0; r < R; r++) sums[r] = v_zero();
        for (int d = 0; d < D; d += LANES) {
            V k = v_load_bf16(key + d);
            for (int r = 0; r < R; r++) sums[r] = v_fma(k, v_load(a.queries + r * D + d), sums[r]);
        }
        float dots[R + 3];
        for (int r = 0; r < R; r += 4) v_sum4(sums + r, R - r, dots + r);
        for (int r = 0; r < R; r++) {
            float score = dots[r] + from_bf16(a.bias[r][s]);
            scores[r][s - begin] = score;
            tops[r] = score > tops[r] ? score : tops[r];
        }
    }
}

// mixed = mixed * fade + weights @ values, for R rows.
template <int R> void mix_part(const Attention &a, int begin, int end, float (*weights)[PART], const float *fade) {
    const int D = a.head_dim;
    for (int d = 0; d < D; d += LANES) {
        V sums[R];
        for (int r = 0; r < R; r++) sums[r] = v_mul(v_load(a.mixed + r * D + d), v_set(fade[r]));
        for (int s = begin; s < end; s++) {
            V value = v_load_bf16(a.values + size_t(s) * D + d);
            for (int r = 0; r < R; r++) sums[r] = v_fma(v_set(weights[r][s - begin]), value, sums[r]);
        }
        for (int r = 0; r < R; r++) v_store(a.mixed + r * D + d, sums[r]);
    }
}

bool is_all_hidden(const Attention &a, int begin, int end) {
    for (int r = 0; r < a.rows; r++)
        for (int s = begin; s < end; s++)
            if (a.bias[r][s] != 0xff80) return false;
    return true;
}

// Softmax with a running maximum (arXiv 2112.05682): parts are scored, weighed and mixed in turn.
template <int R> void attend_rows(const Attention &a) {
    alignas(64) float scores[R][PART];
    for (int r = 0; r < R; r++) a.top[r] = -INFINITY, a.total[r] = 0;
    for (int i = 0; i < R * a.head_dim; i++) a.mixed[i] = 0;
    for (int begin = a.begin; begin < a.end; begin += PART) {
        int end = begin + PART < a.end ? begin + PART : a.end, n = end - begin;
        if (is_all_hidden(a, begin, end)) continue;
        float tops[R], fade[R];
        score_part<R>(a, begin, end, scores, tops);
        for (int r = 0; r < R; r++) {
            for (int s = n; s < PART; s++) scores[r][s] = -INFINITY;
            float top = tops[r] > a.top[r] ? tops[r] : a.top[r];
            fade[r] = a.top[r] == -INFINITY ? 0.0f : std::exp(a.top[r] - top);
            V total = v_zero(), shift = v_set(top == -INFINITY ? 0.0f : top);
            for (int s = 0; s < PART; s += LANES) {
                V x = v_sub(v_load(scores[r] + s), shift);
                V weight = v_and_above(v_exp(x), x);
                v_store(scores[r] + s, weight);
                total = v_add(total, weight);
            }
            a.total[r] = a.total[r] * fade[r] + v_sum(total);
            a.top[r] = top;
        }
        mix_part<R>(a, begin, end, scores, fade);
    }
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

void swiglu(const float *gate, const float *up, int n, float *y) {
    int i = 0;
    for (; i + LANES <= n; i += LANES) {
        V g = v_load(gate + i);
        V e = v_exp(v_min(v_sub(v_zero(), g), v_set(88.0f)));
        v_store(y + i, v_mul(v_div(g, v_add(v_set(1.0f), e)), v_load(up + i)));
    }
    for (; i < n; i++) y[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

// Tries roundings around the one that spans the values. For given integers q the best scale is the
// weighted sum of x q over that of q q, and what it explains of the values is the square of the first
// over the second.
float best_scale(const float *x, const float *weights) {
    float largest = 0;
    for (int i = 0; i < BLOCK; i++)
        if (std::fabs(x[i]) > std::fabs(largest)) largest = x[i];
    if (std::fabs(largest) < SMALLEST) return 0;
    float best = 0, scale = 0;
    for (int step = -12; step <= 12; step++) {
        const V inverse = v_set(-(8.0f + 0.1f * float(step)) / largest);
        V xq = v_zero(), qq = v_zero();
        for (int i = 0; i < BLOCK; i += LANES) {
            const V value = v_load(x + i);
            const V q = v_min(v_max(v_round(v_mul(value, inverse)), v_set(-8.0f)), v_set(7.0f));
            const V weighted = v_mul(v_load(weights + i), q);
            xq = v_fma(weighted, value, xq);
            qq = v_fma(weighted, q, qq);
        }
        const float sum_xq = v_sum(xq), sum_qq = v_sum(qq);
        if (sum_qq > 0 && sum_xq * sum_xq > best * sum_qq) best = sum_xq * sum_xq / sum_qq, scale = sum_xq / sum_qq;
    }
    return scale;
}

} // namespace
} // namespace m7b
