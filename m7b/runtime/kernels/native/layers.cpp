#include "layers.h"

#include <cstring>
#include <vector>

namespace m7b {
namespace {

using Values = std::vector<uint16_t>; // bfloat16, as every operation rounds its result

Array array(Values &values) { return {values.data(), BF16}; }

// Rows (T, K, D) to a ring (K, capacity, D), from `slot` on.
void write(const Values &rows, int T, const Sizes &s, int slot, uint16_t *ring) {
    for (int t = 0; t < T; t++)
        for (int head = 0; head < s.K; head++)
            std::memcpy(ring + (size_t(head) * s.capacity + (slot + t) % s.capacity) * s.D,
                        &rows[(size_t(t) * s.K + head) * s.D], 2 * s.D);
}

} // namespace

void forward(const Layer *layers, const Sizes &s, uint16_t *h, int T, const float *cos, const float *sin,
             const uint16_t *bias, int slot, int S, int n_threads) {
    static Values x, q, k, v, gate, up; // kept from call to call; one call runs at a time
    const size_t n = T;
    x.resize(n * s.dim), q.resize(n * s.H * s.D), k.resize(n * s.K * s.D), v.resize(n * s.K * s.D);
    gate.resize(n * s.hidden_dim), up.resize(n * s.hidden_dim);
    const Shape shape = {T, s.H, s.K, S, s.D, size_t(s.capacity) * s.D};
    const auto project = [&](Values &from, std::initializer_list<std::pair<const Matrix *, Values *>> to) {
        Weight weights[3];
        int n_weights = 0;
        const int n_in = int(from.size() / n);
        for (auto [matrix, y] : to) {
            const int n_out = int(y->size() / n);
            if (matrix->type == DENSE)
                linear_bf16(static_cast<const uint16_t *>(matrix->data), array(from), T, n_in, n_out, array(*y), n_threads);
            else
                weights[n_weights++] = {int(matrix->type), static_cast<const uint8_t *>(matrix->data), n_out, y->data()};
        }
        if (n_weights) linear(weights, n_weights, array(from), T, n_in, n_threads);
    };
    for (const Layer *layer = layers; layer < layers + s.n_layers; layer++) {
        rms_norm({h, BF16}, {layer->attention_norm, BF16}, T, s.dim, s.eps, array(x), n_threads);
        project(x, {{&layer->wq, &q}, {&layer->wk, &k}, {&layer->wv, &v}});
        rotate(array(q), cos, sin, T, s.H, s.D, array(q), n_threads);
        rotate(array(k), cos, sin, T, s.K, s.D, array(k), n_threads);
        write(k, T, s, slot, layer->keys);
        write(v, T, s, slot, layer->values);
        attend(array(q), layer->keys, layer->values, bias, shape, array(q), n_threads);
        project(q, {{&layer->wo, &x}});
        add(h, x.data(), x.size(), n_threads);
        rms_norm({h, BF16}, {layer->ffn_norm, BF16}, T, s.dim, s.eps, array(x), n_threads);
        project(x, {{&layer->w1, &gate}, {&layer->w3, &up}});
        swiglu(array(gate), array(up), gate.size(), array(gate), n_threads);
        project(gate, {{&layer->w2, &x}});
        add(h, x.data(), x.size(), n_threads);
    }
}

} // namespace m7b
