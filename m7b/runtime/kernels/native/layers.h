// Tokens through layers: what the blocks of m7b/runtime/model.py do, without going back to Python in between.
#pragma once
#include "operations.h"

namespace m7b {

struct Matrix {
    const void *data; // panels, or rows
    int64_t type; // a BlockType, or DENSE
};

// The bfloat16 norms, the weights and the cache of a layer: 18 numbers of 64 bits, as Python writes them.
struct Layer {
    void *attention_norm, *ffn_norm;
    Matrix wq, wk, wv, wo, w1, w2, w3;
    uint16_t *keys, *values; // (K, capacity, D)
};

struct Sizes {
    int n_layers, dim, H, K, D, hidden_dim, capacity;
    float eps;
};

// h (T, dim) bfloat16 is changed in place; keys and values go to the ring from `slot` on, and the tokens see slots
// [0, S) under `bias` (T, S).
void forward(const Layer *layers, const Sizes &sizes, uint16_t *h, int T, const float *cos, const float *sin,
             const uint16_t *bias, int slot, int S, int n_threads);

} // namespace m7b
