#include "layers.h"

#include <vector>

namespace m7b {
namespace {

using Values = std::vector<uint16_t>; // bfloat16, as every operation rounds its result

// A weight, where its product goes, and what is added to that.
struct Projection {
    const Matrix *matrix;
    Values *y;
    Update LayerUpdates::*update;
};

Array array(Values &values) { return {values.data(), BF16}; }

} // namespace

void forward(const Layer *layers, int first, int end, const Sizes &s, uint16_t *h, int N, const float *cos,
             const float *sin, const Span *spans, int n_spans, const Part *parts, int n_parts, int n_threads) {
    static Values x, q, k, v, gate, up; // kept from call to call; one call runs at a time
    const size_t n = N;
    const auto [H, K, D] = s.heads;
    x.resize(n * s.dim), q.resize(n * H * D), k.resize(n * K * D), v.resize(n * K * D);
    gate.resize(n * s.hidden_dim), up.resize(n * s.hidden_dim);
    int layer_number = first;
    const auto project = [&](Values &from, std::initializer_list<Projection> to) {
        Weight weights[3];
        int n_weights = 0;
        const int n_in = int(from.size() / n);
        for (auto [matrix, y, update] : to) {
            const int n_out = int(y->size() / n);
            if (matrix->type == DENSE)
                linear_bf16(static_cast<const uint16_t *>(matrix->data), array(from), N, n_in, n_out, array(*y), n_threads);
            else
                weights[n_weights++] = {int(matrix->type), static_cast<const uint8_t *>(matrix->data), n_out, y->data()};
        }
        if (n_weights) linear(weights, n_weights, array(from), N, n_in, n_threads);
        for (const Part *part = parts; part < parts + n_parts; part++) {
            Addition additions[3];
            int n_additions = 0;
            for (auto [matrix, y, update] : to) {
                const int n_out = int(y->size() / n);
                uint16_t *own = y->data() + part->first * n_out;
                additions[n_additions++] = {&(part->layers[layer_number].*update), n_out, {own, BF16}};
            }
            const Array x = {from.data() + part->first * n_in, BF16};
            add_updates(additions, n_additions, x, int(part->n), n_in, n_threads);
        }
    };
    for (int i = first; i < end; i++) {
        layer_number = i;
        const Layer &layer = layers[i];
        rms_norm({h, BF16}, {layer.attention_norm, BF16}, N, s.dim, s.eps, array(x), n_threads);
        project(x, {{&layer.wq, &q, &LayerUpdates::wq}, {&layer.wk, &k, &LayerUpdates::wk}, {&layer.wv, &v, &LayerUpdates::wv}});
        rotate(array(q), cos, sin, N, H, D, array(q), n_threads);
        rotate(array(k), cos, sin, N, K, D, array(k), n_threads);
        attend(array(q), k.data(), v.data(), spans, n_spans, i, s.heads, array(q), n_threads);
        project(q, {{&layer.wo, &x, &LayerUpdates::wo}});
        add(h, x.data(), x.size(), n_threads);
        rms_norm({h, BF16}, {layer.ffn_norm, BF16}, N, s.dim, s.eps, array(x), n_threads);
        project(x, {{&layer.w1, &gate, &LayerUpdates::w1}, {&layer.w3, &up, &LayerUpdates::w3}});
        swiglu(array(gate), array(up), gate.size(), array(gate), n_threads);
        project(gate, {{&layer.w2, &x, &LayerUpdates::w2}});
        add(h, x.data(), x.size(), n_threads);
    }
}

} // namespace m7b
