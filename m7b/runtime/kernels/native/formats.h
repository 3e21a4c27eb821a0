// The block formats of GGUF: one row a format, from which panels, kernels and packing are derived.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__GNUC__)
#define M7B_ALWAYS_INLINE __attribute__((always_inline))
#define M7B_FORGET(number) asm("" : "+r"(number)) // what the compiler knows of it
#else
#define M7B_ALWAYS_INLINE
#define M7B_FORGET(number)
#endif

namespace m7b {

constexpr int BLOCK = 32; // values of a weight that meet activations of one scale
constexpr int PANEL = 16; // rows of a weight that are interleaved, one 32-bit lane each

// The order is that of BlockType in Python. INT8 is Q8_0's blocks times activations of 8 bits instead of 16: faster,
// and less exact.
enum BlockType { Q4_0, Q4_1, Q8_0, INT8, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, N_TYPES };
constexpr int DENSE = -1; // no blocks: rows of bfloat16

// A value is scale * (quant - offset), or scale * quant + minimum; or scale * levels[quant]. The float16 scale and
// minimum are a block's; where parts of it have small whole-number ones of their own, these are multiplied by them.
struct Format {
    int values;      // of a block: 32, or 256
    int bytes;       // of a block in GGUF's row
    int bits;        // of a quant; 8: signed
    int offset;      // of a quant
    int group;       // values that share the smallest scale
    bool has_minima; // a float16 beside the scale, in panels of the sign with which it is added
    int smalls;      // bytes of small scales and minima, for 32 values
    bool has_levels; // the quants count IQ4_LEVELS
    int activation;  // bytes of one that it is multiplied by
};
constexpr Format FORMATS[N_TYPES] = {
    {32, 18, 4, 8, 32, false, 0, false, 1},   // Q4_0
    {32, 20, 4, 0, 32, true, 0, false, 1},    // Q4_1
    {32, 34, 8, 0, 32, false, 0, false, 2},   // Q8_0
    {32, 34, 8, 0, 32, false, 0, false, 1},   // INT8
    {32, 22, 5, 16, 32, false, 0, false, 1},  // Q5_0
    {32, 24, 5, 0, 32, true, 0, false, 1},    // Q5_1
    {256, 84, 2, 0, 16, true, 2, false, 1},   // Q2_K: a small scale and a small minimum share a byte
    {256, 110, 3, 4, 16, false, 2, false, 1}, // Q3_K
    {256, 144, 4, 0, 32, true, 2, false, 1},  // Q4_K
    {256, 176, 5, 0, 32, true, 2, false, 1},  // Q5_K
    {256, 210, 6, 32, 16, false, 2, false, 1}, // Q6_K
    {32, 18, 4, 0, 32, false, 0, true, 1},    // IQ4_NL
    {256, 136, 4, 0, 32, false, 1, true, 1},  // IQ4_XS
};
alignas(16) constexpr int8_t IQ4_LEVELS[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

constexpr bool is_signed(int type) { return FORMATS[type].bits == 8 || FORMATS[type].has_levels; }
constexpr int n_groups(int type) { return BLOCK / FORMATS[type].group; }
constexpr int activation_bytes(int type) { return FORMATS[type].activation; }

// A panel holds, for 16 rows, the quants of all blocks and then their scales.
//
// Quants of 32 values, by row r and word j, which has values 4j..4j+3: planes of 32-bit lanes, lane r at 4 * r.
//   8 bits: plane j is word j.
//   4 bits and more: plane j < 4 has word j in its low nibbles and word 4 + j in its high ones.
//   2 and 3 bits: plane h < 2 has word 4h + i in bits 2i and 2i + 1 of its bytes.
//   6 bits: two planes more, of the same kind, for the two high bits. 3 and 5 bits: one plane more, word j's high bit
//   in bit j of its bytes.
// Scales of a block: 16 float16 scales, 16 float16 minima where there are any, and for each 32 values `smalls` times 16
// bytes: the small scales of two groups, or the small scale and the small minimum.
constexpr int quant_bytes(int type) { return 4 * PANEL * FORMATS[type].bits; } // of 32 values
constexpr int head_bytes(int type) { return 2 * PANEL * (FORMATS[type].has_minima ? 2 : 1); }
constexpr int small_bytes(int type) { return PANEL * FORMATS[type].smalls; } // of 32 values
constexpr int parts(int type) { return FORMATS[type].values / BLOCK; }
constexpr int scale_bytes(int type) { return head_bytes(type) + parts(type) * small_bytes(type); } // of a block
// Where the scales of part b of a panel's row lie among its scales: the float16s, and the small ones.
constexpr size_t head_at(int type, int b) { return size_t(b / parts(type)) * scale_bytes(type); }
constexpr size_t small_at(int type, int b) {
    return head_at(type, b) + head_bytes(type) + (b % parts(type)) * small_bytes(type);
}
constexpr size_t panel_bytes(int type, int n_parts) {
    return size_t(n_parts) * quant_bytes(type) + size_t(n_parts / parts(type)) * scale_bytes(type);
}

// The scales of a block: float16s, of which the minimum is added; and those of 32 values each, as a panel has them.
struct BlockScales {
    uint16_t scale, minimum;
    uint8_t smalls[8][2];
};
// A block taken apart: a byte a quant, in the order of the values, those of 8 bits as they are, else unsigned.
struct Block {
    BlockScales scales;
    uint8_t quants[256];
};
// A block as GGUF's row has it.
void put_together(int type, const Block &block, uint8_t *out);
// At most PANEL rows of n_blocks blocks, one row behind the other, as a panel.
void pack_panel(int type, const uint8_t *rows, int n_rows, int n_blocks, uint8_t *panel);
// The values (FORMATS[type].values,) of a block; those of a whole row of a panel.
void widen_block(int type, const uint8_t *block, float *out);
void widen_row(int type, const uint8_t *panel, int n_blocks, int row, float *out);

} // namespace m7b
