// Pieces of arrays as float32, whatever they hold.
#pragma once
#include <cstring>

#include "operations.h"

namespace m7b {

inline void load_floats(Array x, size_t at, size_t n, float *out) {
    if (x.dtype == F32) {
        std::memcpy(out, static_cast<const float *>(x.data) + at, 4 * n);
    } else {
        kernels().widen(static_cast<const uint16_t *>(x.data) + at, n, out);
    }
}

inline void store_floats(const float *x, size_t n, Array y, size_t at) {
    if (y.dtype == F32) {
        std::memcpy(static_cast<float *>(y.data) + at, x, 4 * n);
    } else {
        kernels().narrow(x, n, static_cast<uint16_t *>(y.data) + at);
    }
}

} // namespace m7b
