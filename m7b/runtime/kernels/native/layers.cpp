#include "layers.h"

#include <vector>

namespace m7b {
namespace {

using Values = std::vector<uint16_t>; // bfloat16, as every operation rounds its result

Array array(Values &values) { return {values.data(), BF16}; }

} // namespace

void forward(const Layer *layers, int first, int end, const Sizes &s, uint16_t *h, int N, const float *cos,
             const float *sin, const Span *spans, int n_spans, int n_threads) {
    static Values x, q, k, v, gate, up; // kept from call to call; one call runs at a time
    const size_t n = N;
    const auto [H, K, D] = s.heads;
    x.resize(n * s.dim), q.resize(n * H * D), k.resize(n * K * D), v.resize(n * K * D);
    gate.resize(n * s.hidden_dim), up.resize(n * s.hidden_dim);
    const auto project = [&](Values &from, std::initializer_list<std::pair<const Matrix *, Values *>> to) {
        Weight weights[3];
        int n_weights = 0;
        const int n_in = int(from.size() / n);
        for (auto [matrix, y] : to) {
            const int n_out = int(y->size() / n);
            if (matrix->type == DENSE)
                linear_bf16(static_cast<const uint16_t *>(matrix->data), array(from), N, n_in, n_out, array(*y), n_threads);
            else
                weights[n_weights++] = {int(matrix->type), static_cast<const uint8_t *>(matrix->data), n_out, y->data()};
        }
        if (n_weights) linear(weights, n_weights, array(from), N, n_in, n_threads);
    };
    for (int i = first; i < end; i++) {
        const Layer &layer = layers[i];
        rms_norm({h, BF16}, {layer.attention_norm, BF16}, N, s.dim, s.eps, array(x), n_threads);
        project(x, {{&layer.wq, &q}, {&layer.wk, &k}, {&layer.wv, &v}});
        rotate(array(q), cos, sin, N, H, D, array(q), n_threads);
        rotate(array(k), cos, sin, N, K, D, array(k), n_threads);
        attend(array(q), k.data(), v.data(), spans, n_spans, i, s.heads, array(q), n_threads);
        project(q, {{&layer.wo, &x}});
        add(h, x.data(), x.size(), n_threads);
        rms_norm({h, BF16}, {layer.ffn_norm, BF16}, N, s.dim, s.eps, array(x), n_threads);
        project(x, {{&layer.w1, &gate}, {&layer.w3, &up}});
        swiglu(array(gate), array(up), gate.size(), array(gate), n_threads);
        project(gate, {{&layer.w2, &x}});
        add(h, x.data(), x.size(), n_threads);
    }
}

} // namespace m7b
