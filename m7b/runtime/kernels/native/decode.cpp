#include "decode.h"

#include <cstring>
#include <vector>

#include "numbers.h"

namespace m7b {
namespace {

using Values = std::vector<uint16_t>; // bfloat16, as every operation rounds its result

Array array(Values &values) { return {values.data(), BF16}; }

void add(uint16_t *h, const Values &y) {
    for (size_t i = 0; i < y.size(); i++) h[i] = to_bf16(from_bf16(h[i]) + from_bf16(y[i]));
}

} // namespace

void decode(const Layer *layers, const Sizes &s, uint16_t *h, const float *cos, const float *sin,
            const uint16_t *bias, int slot, int S, int n_threads) {
    const int n_q = s.H * s.D, n_kv = s.K * s.D;
    Values x(s.dim), q(n_q), k(n_kv), v(n_kv), turned_q(n_q), turned_k(n_kv), mixed(n_q), gate(s.hidden_dim),
        up(s.hidden_dim);
    const auto project = [&](Values &from, std::initializer_list<std::pair<const Panels *, Values *>> to) {
        Weight weights[3];
        int n = 0;
        for (auto [panels, y] : to) weights[n++] = {int(panels->type), panels->data, int(y->size()), y->data()};
        linear(weights, n, array(from), 1, int(from.size()), n_threads);
    };
    for (const Layer *layer = layers; layer < layers + s.n_layers; layer++) {
        rms_norm({h, BF16}, {layer->attention_norm, BF16}, 1, s.dim, s.eps, array(x), n_threads);
        project(x, {{&layer->wq, &q}, {&layer->wk, &k}, {&layer->wv, &v}});
        rotate(array(q), cos, sin, 1, s.H, s.D, array(turned_q));
        rotate(array(k), cos, sin, 1, s.K, s.D, array(turned_k));
        for (int head = 0; head < s.K; head++) {
            const size_t at = head * s.kv_stride + size_t(slot) * s.D;
            std::memcpy(layer->keys + at, &turned_k[size_t(head) * s.D], 2 * s.D);
            std::memcpy(layer->values + at, &v[size_t(head) * s.D], 2 * s.D);
        }
        attend(array(turned_q), layer->keys, layer->values, bias, {1, s.H, s.K, S, s.D, s.kv_stride},
               array(mixed), n_threads);
        project(mixed, {{&layer->wo, &x}});
        add(h, x);
        rms_norm({h, BF16}, {layer->ffn_norm, BF16}, 1, s.dim, s.eps, array(x), n_threads);
        project(x, {{&layer->w1, &gate}, {&layer->w3, &up}});
        swiglu(array(gate), array(up), gate.size(), array(gate), n_threads);
        project(gate, {{&layer->w2, &x}});
        add(h, x);
    }
}

} // namespace m7b
