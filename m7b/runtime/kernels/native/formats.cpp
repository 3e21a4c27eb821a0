// From GGUF's blocks to panels, and to numbers. (Layouts: ggml-common.h.)
#include "formats.h"

#include <array>
#include <cstring>
#include <utility>

#include "numbers.h"

// What is inlined where a format is known keeps only what that format needs.
#define M7B_INLINE inline M7B_ALWAYS_INLINE

namespace m7b {
namespace {

constexpr int PLANE = 4 * PANEL;

// 32 quants, a byte each in the order of the values: words 2i and 2i + 1 in w[i]. They stay in registers.
struct Quants {
    uint64_t w[4];
};

template <class T> M7B_INLINE T load(const uint8_t *from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}
template <class T> M7B_INLINE void store(T value, uint8_t *to) { std::memcpy(to, &value, sizeof value); }

constexpr uint64_t in_all_bytes(unsigned bits) { return 0x0101010101010101u * bits; }

// The bits [shift, shift + bits) of 32 bytes.
M7B_INLINE Quants load_bits(const uint8_t *from, int shift, int bits) {
    Quants q;
    for (int i = 0; i < 4; i++) q.w[i] = load<uint64_t>(from + 8 * i) >> shift & in_all_bytes((1u << bits) - 1);
    return q;
}

// The low nibbles of 16 bytes, then the high ones.
M7B_INLINE Quants load_nibbles(const uint8_t *from) {
    const uint64_t a = load<uint64_t>(from), b = load<uint64_t>(from + 8), low = in_all_bytes(15);
    return {{a & low, b & low, a >> 4 & low, b >> 4 & low}};
}

M7B_INLINE void add(Quants &q, const Quants &high, int shift) {
    for (int i = 0; i < 4; i++) q.w[i] |= high.w[i] << shift;
}

// Bit i of four bytes as the lowest of byte i.
M7B_INLINE Quants spread_bits(uint32_t bits) {
    Quants q;
    for (int i = 0; i < 4; i++) {
        const uint64_t low = ((bits >> 8 * i & 15) * 0x00204081u) & 0x01010101u;
        const uint64_t high = ((bits >> (8 * i + 4) & 15) * 0x00204081u) & 0x01010101u;
        q.w[i] = low | high << 32;
    }
    return q;
}

// The quants of part i of a block.
M7B_INLINE Quants load_quants(int type, const uint8_t *block, int i) {
    const Format &format = FORMATS[type];
    Quants q = {};
    switch (type) {
    case Q8_0:
    case INT8:
        std::memcpy(&q, block + 2, BLOCK);
        break;
    case Q5_0:
    case Q5_1: // float16s, fifth bits, quants
        q = load_nibbles(block + format.bytes - 16);
        add(q, spread_bits(load<uint32_t>(block + format.bytes - 20)), 4);
        break;
    case Q2_K: // scales, quants, float16s
        q = load_bits(block + 16 + i / 4 * 32, i % 4 * 2, 2);
        break;
    case Q3_K: // high bits, low bits, scales, float16
        q = load_bits(block + 32 + i / 4 * 32, i % 4 * 2, 2);
        add(q, load_bits(block, i, 1), 2);
        break;
    case Q4_K: // float16s, scales, quants
        q = load_bits(block + 16 + i / 2 * 32, i % 2 * 4, 4);
        break;
    case Q5_K: // float16s, scales, high bits, quants
        q = load_bits(block + 48 + i / 2 * 32, i % 2 * 4, 4);
        add(q, load_bits(block + 16, i, 1), 4);
        break;
    case Q6_K: // low bits, high bits, scales, float16
        q = load_bits(block + i / 4 * 64 + i % 2 * 32, i % 4 / 2 * 4, 4);
        add(q, load_bits(block + 128 + i / 4 * 32, i % 4 * 2, 2), 4);
        break;
    case IQ4_XS: // float16, high bits of the scales, their low bits, quants
        q = load_nibbles(block + 8 + 16 * i);
        break;
    default: // Q4_0, Q4_1, IQ4_NL: float16s, quants
        q = load_nibbles(block + format.bytes - 16);
    }
    return q;
}

// Eight small scales and eight small minima of six bits in twelve bytes.
M7B_INLINE void load_small_pairs(const uint8_t *from, uint8_t (*smalls)[2]) {
    for (int i = 0; i < 4; i++) {
        smalls[i][0] = from[i] & 63, smalls[i][1] = from[4 + i] & 63;
        smalls[4 + i][0] = uint8_t((from[8 + i] & 15) | (from[i] >> 6) << 4);
        smalls[4 + i][1] = uint8_t((from[8 + i] >> 4) | (from[4 + i] >> 6) << 4);
    }
}

// Sixteen small scales of six bits, 32 more than they stand for, in twelve bytes.
M7B_INLINE void load_small_scales(const uint8_t *from, uint8_t (*smalls)[2]) {
    for (int i = 0; i < 16; i++) {
        const int low = (from[i % 8] >> (i / 8 * 4)) & 15, high = (from[8 + i % 4] >> (i / 4 * 2)) & 3;
        smalls[i / 2][i % 2] = uint8_t((low | high << 4) - 32);
    }
}

M7B_INLINE BlockScales load_scales(int type, const uint8_t *block) {
    constexpr uint16_t SIGN = 0x8000; // the minima of K types are subtracted
    const uint8_t *const end = block + FORMATS[type].bytes;
    BlockScales s = {};
    switch (type) {
    case Q2_K:
        std::memcpy(s.smalls, block, 16);
        s.scale = load<uint16_t>(end - 4), s.minimum = load<uint16_t>(end - 2) ^ SIGN;
        break;
    case Q3_K:
        load_small_scales(block + 96, s.smalls);
        s.scale = load<uint16_t>(end - 2);
        break;
    case Q4_K:
    case Q5_K:
        load_small_pairs(block + 4, s.smalls);
        s.scale = load<uint16_t>(block), s.minimum = load<uint16_t>(block + 2) ^ SIGN;
        break;
    case Q6_K:
        std::memcpy(s.smalls, block + 192, 16);
        s.scale = load<uint16_t>(end - 2);
        break;
    case IQ4_XS:
        for (int i = 0; i < 8; i++) {
            const int low = block[4 + i / 2] >> (i % 2 * 4) & 15, high = load<uint16_t>(block + 2) >> (2 * i) & 3;
            s.smalls[i][0] = uint8_t((low | high << 4) - 32);
        }
        s.scale = load<uint16_t>(block);
        break;
    default:
        s.scale = load<uint16_t>(block);
        if (FORMATS[type].has_minima) s.minimum = load<uint16_t>(block + 2);
    }
    return s;
}

M7B_INLINE void store_words(uint64_t words, uint8_t *to) {
    store(uint32_t(words), to), store(uint32_t(words >> 32), to + PLANE);
}
// Four words of two bits: word i in bits 2i and 2i + 1.
M7B_INLINE void store_pairs(uint64_t a, uint64_t b, int shift, uint8_t *to) {
    a = a >> shift & in_all_bytes(3), b = b >> shift & in_all_bytes(3);
    const uint64_t both = a | b << 4;
    store(uint32_t(both) | uint32_t(both >> 32) << 2, to);
}

// 32 quants to the planes of a panel's row.
M7B_INLINE void pack_quants(int bits, const Quants &q, uint8_t *to) {
    if (bits == 8) {
        for (int i = 0; i < 4; i++) store_words(q.w[i], to + 2 * PLANE * i);
        return;
    }
    if (bits < 4) {
        for (int h = 0; h < 2; h++, to += PLANE) store_pairs(q.w[2 * h], q.w[2 * h + 1], 0, to);
    } else {
        const uint64_t low = in_all_bytes(15);
        for (int i = 0; i < 2; i++, to += 2 * PLANE) store_words((q.w[i] & low) | (q.w[2 + i] & low) << 4, to);
    }
    if (bits == 6) {
        for (int h = 0; h < 2; h++, to += PLANE) store_pairs(q.w[2 * h], q.w[2 * h + 1], 4, to);
    } else if (bits % 2) {
        uint64_t plane = 0;
        for (int i = 0; i < 4; i++) plane |= (q.w[i] >> (bits - 1) & in_all_bytes(1)) << 2 * i;
        store(uint32_t(plane) | uint32_t(plane >> 32) << 1, to);
    }
}

// Part I of a block to row `row` of a panel.
template <int TYPE, int I>
M7B_INLINE void pack_part(const uint8_t *block, const BlockScales &s, int row, uint8_t *quants, uint8_t *scales) {
    for (int k = 0; k < FORMATS[TYPE].smalls; k++)
        scales[head_bytes(TYPE) + I * small_bytes(TYPE) + k * PANEL + row] = s.smalls[I][k];
    pack_quants(FORMATS[TYPE].bits, load_quants(TYPE, block, I), quants + I * quant_bytes(TYPE) + 4 * row);
}

template <int TYPE, int... I>
M7B_INLINE void pack_block(const uint8_t *block, int row, uint8_t *quants, uint8_t *scales, std::integer_sequence<int, I...>) {
    const BlockScales s = load_scales(TYPE, block);
    store(s.scale, scales + 2 * row);
    if (FORMATS[TYPE].has_minima) store(s.minimum, scales + 2 * PANEL + 2 * row);
    (pack_part<TYPE, I>(block, s, row, quants, scales), ...);
}

template <int TYPE> void pack_panel_of(const uint8_t *rows, int n_rows, int n_blocks, uint8_t *panel) {
    constexpr int QUANTS = parts(TYPE) * quant_bytes(TYPE);
    uint8_t *scales = panel + size_t(n_blocks) * QUANTS;
    for (int b = 0; b < n_blocks; b++)
        for (int row = 0; row < n_rows; row++)
            pack_block<TYPE>(rows + (size_t(row) * n_blocks + b) * FORMATS[TYPE].bytes, row, panel + size_t(b) * QUANTS,
                             scales + size_t(b) * scale_bytes(TYPE), std::make_integer_sequence<int, parts(TYPE)>());
}

using PackPanel = void (*)(const uint8_t *rows, int n_rows, int n_blocks, uint8_t *panel);
template <int... TYPE> constexpr std::array<PackPanel, N_TYPES> all_packs(std::integer_sequence<int, TYPE...>) {
    return {{pack_panel_of<TYPE>...}};
}
constexpr std::array<PackPanel, N_TYPES> PACKS = all_packs(std::make_integer_sequence<int, N_TYPES>());

// And back: 32 quants out of the planes of a panel's row.
Quants unpack_quants(int bits, const uint8_t *from) {
    uint32_t words[8];
    for (int j = 0; j < 8; j++) {
        if (bits == 8) words[j] = load<uint32_t>(from + PLANE * j);
        else if (bits < 4) words[j] = load<uint32_t>(from + PLANE * (j / 4)) >> (j % 4 * 2) & 0x03030303u;
        else words[j] = load<uint32_t>(from + PLANE * (j % 4)) >> (j / 4 * 4) & 0x0f0f0f0fu;
        if (bits == 6) words[j] |= (load<uint32_t>(from + PLANE * (4 + j / 4)) >> (j % 4 * 2) & 0x03030303u) << 4;
        else if (bits % 2) words[j] |= (load<uint32_t>(from + PLANE * (bits - 1)) >> j & 0x01010101u) << (bits - 1);
    }
    Quants q;
    std::memcpy(&q, words, sizeof q);
    return q;
}

// The values of 32 quants, which are part i of a block.
void widen_part(int type, const Quants &q, const BlockScales &scales, int i, float *out) {
    const Format &format = FORMATS[type];
    uint8_t quants[BLOCK];
    std::memcpy(quants, &q, BLOCK);
    for (int at = 0; at < BLOCK; at += format.group) {
        const uint8_t *smalls = scales.smalls[i];
        float s = from_f16(scales.scale), m = format.has_minima ? from_f16(scales.minimum) : 0;
        if (type == Q2_K) {
            const uint8_t both = smalls[at / format.group];
            s *= both & 15, m *= both >> 4;
        } else if (format.smalls) {
            s *= int8_t(smalls[at / format.group]);
            if (format.has_minima) m *= smalls[1];
        }
        for (int k = at; k < at + format.group; k++) {
            const int value = format.has_levels  ? IQ4_LEVELS[quants[k]]
                              : format.bits == 8 ? int8_t(quants[k])
                                                 : quants[k] - format.offset;
            out[k] = format.has_minima ? s * float(value) + m : s * float(value);
        }
    }
}

// And back: what load_bits, load_nibbles, spread_bits, load_small_pairs and load_small_scales read.
void put_bits(const uint8_t *quants, int from, int bits, int shift, uint8_t *to) {
    const uint8_t mask = uint8_t((1 << bits) - 1);
    for (int i = 0; i < BLOCK; i++) to[i] = uint8_t(to[i] | ((quants[i] >> from) & mask) << shift);
}

void put_nibbles(const uint8_t *quants, uint8_t *to) {
    for (int i = 0; i < 16; i++) to[i] = uint8_t((quants[i] & 15) | (quants[16 + i] & 15) << 4);
}

void put_fifth_bits(const uint8_t *quants, uint8_t *to) {
    for (int i = 0; i < BLOCK; i++) to[i / 8] = uint8_t(to[i / 8] | (quants[i] >> 4) << (i % 8));
}

void put_small_pairs(const uint8_t (*smalls)[2], uint8_t *to) {
    for (int i = 0; i < 4; i++) {
        to[i] = uint8_t(smalls[i][0] | (smalls[4 + i][0] >> 4) << 6);
        to[4 + i] = uint8_t(smalls[i][1] | (smalls[4 + i][1] >> 4) << 6);
        to[8 + i] = uint8_t((smalls[4 + i][0] & 15) | (smalls[4 + i][1] & 15) << 4);
    }
}

void put_small_scales(const uint8_t (*smalls)[2], uint8_t *to) {
    for (int i = 0; i < 16; i++) {
        const int small = uint8_t(smalls[i / 2][i % 2] + 32);
        to[i % 8] = uint8_t(to[i % 8] | (small & 15) << (i / 8 * 4));
        to[8 + i % 4] = uint8_t(to[8 + i % 4] | (small >> 4) << (i / 4 * 2));
    }
}

void put_together_32(int type, const Block &block, uint8_t *out) {
    store(block.scales.scale, out), out += 2;
    if (FORMATS[type].has_minima) store(block.scales.minimum, out), out += 2;
    if (FORMATS[type].bits == 8) {
        std::memcpy(out, block.quants, BLOCK);
    } else if (FORMATS[type].bits == 5) {
        put_fifth_bits(block.quants, out);
        put_nibbles(block.quants, out + 4);
    } else {
        put_nibbles(block.quants, out);
    }
}

void put_together_k(int type, const Block &block, uint8_t *out) {
    uint8_t *const end = out + FORMATS[type].bytes;
    switch (type) {
    case Q2_K:
        for (int i = 0; i < 16; i++) out[i] = block.scales.smalls[i / 2][i % 2];
        for (int i = 0; i < 8; i++) put_bits(block.quants + i * BLOCK, 0, 2, i % 4 * 2, out + 16 + i / 4 * 32);
        store(block.scales.scale, end - 4), store(uint16_t(block.scales.minimum ^ 0x8000u), end - 2);
        break;
    case Q3_K:
        for (int i = 0; i < 8; i++) {
            put_bits(block.quants + i * BLOCK, 0, 2, i % 4 * 2, out + 32 + i / 4 * 32);
            put_bits(block.quants + i * BLOCK, 2, 1, i, out);
        }
        put_small_scales(block.scales.smalls, out + 96);
        store(block.scales.scale, end - 2);
        break;
    case Q4_K:
    case Q5_K:
        store(block.scales.scale, out), store(uint16_t(block.scales.minimum ^ 0x8000u), out + 2);
        put_small_pairs(block.scales.smalls, out + 4);
        for (int i = 0; i < 8; i++) {
            put_bits(block.quants + i * BLOCK, 0, 4, i % 2 * 4, end - 128 + i / 2 * 32);
            if (type == Q5_K) put_bits(block.quants + i * BLOCK, 4, 1, i, out + 16);
        }
        break;
    case Q6_K:
        for (int i = 0; i < 8; i++) {
            put_bits(block.quants + i * BLOCK, 0, 4, i % 4 / 2 * 4, out + i / 4 * 64 + i % 2 * 32);
            put_bits(block.quants + i * BLOCK, 4, 2, i % 4 * 2, out + 128 + i / 4 * 32);
        }
        std::memcpy(out + 192, block.scales.smalls, 16);
        store(block.scales.scale, end - 2);
        break;
    case IQ4_XS:
        store(block.scales.scale, out);
        for (int i = 0, high = 0; i < 8; i++) {
            const int small = uint8_t(block.scales.smalls[i][0] + 32);
            out[4 + i / 2] = uint8_t(out[4 + i / 2] | (small & 15) << (i % 2 * 4));
            high |= (small >> 4) << (2 * i);
            store(uint16_t(high), out + 2);
            put_nibbles(block.quants + i * BLOCK, out + 8 + 16 * i);
        }
        break;
    }
}

} // namespace

void put_together(int type, const Block &block, uint8_t *out) {
    std::memset(out, 0, FORMATS[type].bytes);
    FORMATS[type].values == BLOCK ? put_together_32(type, block, out) : put_together_k(type, block, out);
}

void pack_panel(int type, const uint8_t *rows, int n_rows, int n_blocks, uint8_t *panel) {
    PACKS[type](rows, n_rows, n_blocks, panel);
}

void widen_block(int type, const uint8_t *block, float *out) {
    const BlockScales scales = load_scales(type, block);
    for (int i = 0; i < parts(type); i++) widen_part(type, load_quants(type, block, i), scales, i, out + i * BLOCK);
}

void widen_row(int type, const uint8_t *panel, int n_blocks, int row, float *out) {
    const uint8_t *quants = panel + 4 * row, *scales = panel + size_t(n_blocks) * parts(type) * quant_bytes(type);
    for (int b = 0; b < n_blocks; b++, scales += scale_bytes(type)) {
        BlockScales s = {load<uint16_t>(scales + 2 * row), 0, {}};
        if (FORMATS[type].has_minima) s.minimum = load<uint16_t>(scales + 2 * PANEL + 2 * row);
        for (int i = 0; i < parts(type); i++, quants += quant_bytes(type), out += BLOCK) {
            for (int k = 0; k < FORMATS[type].smalls; k++)
                s.smalls[i][k] = scales[head_bytes(type) + i * small_bytes(type) + k * PANEL + row];
            widen_part(type, unpack_quants(FORMATS[type].bits, quants), s, i, out);
        }
    }
}

} // namespace m7b
