// Tokens through layers: what the blocks of m7b/runtime/model/ do, without going back to Python in between.
#pragma once
#include "updates.h"

namespace m7b {

struct Matrix {
    const void *data; // panels, or rows
    int64_t type; // a BlockType, or DENSE
};

// The bfloat16 norms and the weights of a layer: 16 numbers of 64 bits, as Python writes them.
struct Layer {
    void *attention_norm, *ffn_norm;
    Matrix wq, wk, wv, wo, w1, w2, w3;
};

// What an adapter adds to the weights of a layer.
struct LayerUpdates {
    Update wq, wk, wv, wo, w1, w2, w3;
};
// Tokens [first, first + n) of a batch, and what is added for them in each layer of the model: three numbers of 64 bits,
// as Python writes them.
struct Part {
    const LayerUpdates *layers;
    int64_t first, n;
};

struct Sizes {
    int dim, hidden_dim;
    Heads heads;
    float eps;
};

// The tokens of the spans through layers [first, end) of the model: h (N, dim) bfloat16 is changed in place.
void forward(const Layer *layers, int first, int end, const Sizes &sizes, uint16_t *h, int N, const float *cos,
             const float *sin, const Span *spans, int n_spans, const Part *parts, int n_parts, int n_threads);

} // namespace m7b
