// What an instruction set must bring, and what is made of it. A file of one asks for its target, defines what stands
// here or includes it, then includes this: `bring` names everything it then has.
#pragma once
#include "kernels.h"

namespace m7b {
namespace {

// Vectors of LANES float32, V, and how many of them registers hold: 16 or 32. Each function works lane by lane unless it
// says otherwise.
V v_zero();
V v_set(float x); // x in every lane
V v_load(const float *x); // at any address, as all loads and stores
void v_store(float *x, V v);
V v_add(V a, V b);
V v_sub(V a, V b);
V v_mul(V a, V b);
V v_div(V a, V b);
V v_fma(V a, V b, V c); // a * b + c, rounded once but in portable.cpp
V v_max(V a, V b); // b where a is NaN
V v_min(V a, V b); // b where a is NaN
V v_round(V a); // to whole numbers, ties to even
V v_scale(V a, V n); // a * 2^n for whole n from -126 to 127
V v_and_above(V value, V x, float limit); // value where x > limit, else 0
float v_sum(V v); // of all lanes
void v_sum4(const V *v, int n, float *sums); // of each of up to four vectors; beyond `n`, sums[0] to [3] have no meaning
[[maybe_unused]] void v_sum16(const V *v, float *sums); // of each of 16 vectors, to the bits that v_sum4 gives; where REGISTERS is 32
V v_load_bf16(const uint16_t *x);
V v_set_bf16(const uint8_t *x); // one number in every lane; may read the two bytes before it
V v_load_quants(const uint8_t *x); // unsigned bytes, and `QUANT_OFFSET` more, a constant
void v_store_bf16(uint16_t *x, V v); // rounded as to_bf16 rounds
V v_load_f16(const uint8_t *x);
V v_load_i8(const uint8_t *x); // signed bytes
template <int SHIFT> V v_load_nibble(const uint8_t *x); // four bits of bytes, from bit SHIFT on: 0 or 4

// Vectors of 4 * LANES bytes, B.
B b_load(const uint8_t *x);
B b_or(B a, B b);
template <int SHIFT, int MASK> B b_take(B a); // SHIFT bits to the right, or to the left where that is negative, and MASK
B b_look_up(const int8_t *table, B a); // table[i] for each byte i below 16

// Products of blocks. A panel is multiplied strip after strip, each of PARTS vectors of rows, tokens TOGETHER at a
// time (`template <int TYPE> constexpr int`), as registers allow:
//   template <int TYPE> struct Weights {
//       explicit Weights(const uint8_t *quants);                   // 32 values of a strip's rows
//       template <int N> void dot(const Tile &tokens, V (*dots)[PARTS][n_groups(TYPE)]) const;
//   };
// `dot` finds the sums of products of whole numbers, of each group, exactly, for N tokens as the set's own quantizers
// and `pair` leave them.

// As `Kernels` describes them.
void quantize_block(const float *x, int8_t *quants, float *scale, int32_t *sums);
void quantize_block_16(const float *x, int16_t *quants, float *scale);
void widen_levels(const uint8_t *quants, float scale, const float *levels, uint16_t *out);
uint64_t sum_bytes(const uint8_t *bytes, size_t n);

} // namespace
} // namespace m7b

#include "float_kernels.h"
#include "line_kernel.h"
#include "linear_kernel.h"

namespace m7b {
namespace {

constexpr Kernels bring(const char *name) {
    Kernels k = {};
    k.name = name;
    k.widen = widen, k.narrow = narrow, k.widen_levels = widen_levels;
    k.quantize_block = quantize_block, k.quantize_block_16 = quantize_block_16, k.measure_line = measure_line;
    k.linears = LINEARS<false>.data(), k.linear_bf16 = linear_bf16, k.attend = attend;
    k.rms_norm = rms_norm, k.add = add, k.swiglu = swiglu, k.sum_bytes = sum_bytes, k.add_rows = add_rows;
    return k;
}

} // namespace
} // namespace m7b
