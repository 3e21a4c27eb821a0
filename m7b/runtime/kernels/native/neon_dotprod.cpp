// ARM with dot products: 4 rows a vector, sums of four products of 8-bit integers by sdot.
#include "kernels.h"
#if defined(M7B_HAS_DOTPROD)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC optimize("no-schedule-insns") // which asks for more registers than there are
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#include "neon_words.h"

namespace m7b {
namespace {

template <int TYPE> struct Weights : Words<TYPE> {
    M7B_ALWAYS_INLINE explicit Weights(const uint8_t *quants) : Words<TYPE>(quants) {}

    template <int N> M7B_ALWAYS_INLINE void dot(const Tile &tokens, V (*dots)[PARTS][n_groups(TYPE)]) const {
        M7B_UNROLL_TOKENS
        for (int i = 0; i < N; i++) this->dot_one(tokens, i, dots[i]);
    }
};

} // namespace
} // namespace m7b

#include "instruction_set.h"
#include "dense_kernel.h"

namespace m7b {
const Kernels dotprod_kernels = with_dense(bring("dotprod"));
}
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
