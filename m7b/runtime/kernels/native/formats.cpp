// From GGUF's blocks to panels, and to numbers. (Layouts: ggml-common.h.)
#include "formats.h"

#include <cstring>

#include "numbers.h"

namespace m7b {
namespace {

uint16_t load_16(const uint8_t *from) {
    uint16_t value;
    std::memcpy(&value, from, 2);
    return value;
}

// 32 quants from the bits [shift, shift + bits) of as many bytes, added at bit `to` of what stands there.
void add_bits(const uint8_t *from, int shift, int bits, int to, uint8_t *quants) {
    const uint8_t mask = uint8_t((1 << bits) - 1);
    for (int i = 0; i < BLOCK; i++) quants[i] = uint8_t(quants[i] | ((from[i] >> shift) & mask) << to);
}

// 32 quants from 16 bytes: the low nibbles, then the high ones.
void set_nibbles(const uint8_t *from, uint8_t *quants) {
    for (int i = 0; i < 16; i++) quants[i] = from[i] & 15, quants[16 + i] = from[i] >> 4;
}

// Bit i of four bytes becomes the fifth of quant i.
void add_fifth_bits(const uint8_t *from, uint8_t *quants) {
    for (int i = 0; i < BLOCK; i++) quants[i] = uint8_t(quants[i] | ((from[i / 8] >> (i % 8)) & 1) << 4);
}

// Eight small scales and eight small minima of six bits in twelve bytes.
void set_small_pairs(const uint8_t *from, uint8_t (*smalls)[2]) {
    for (int i = 0; i < 4; i++) {
        smalls[i][0] = from[i] & 63, smalls[i][1] = from[4 + i] & 63;
        smalls[4 + i][0] = uint8_t((from[8 + i] & 15) | (from[i] >> 6) << 4);
        smalls[4 + i][1] = uint8_t((from[8 + i] >> 4) | (from[4 + i] >> 6) << 4);
    }
}

// Sixteen small scales of six bits, 32 more than they stand for, in twelve bytes.
void set_small_scales(const uint8_t *from, uint8_t (*smalls)[2]) {
    for (int i = 0; i < 16; i++) {
        const int low = (from[i % 8] >> (i / 8 * 4)) & 15, high = (from[8 + i % 4] >> (i / 4 * 2)) & 3;
        smalls[i / 2][i % 2] = uint8_t((low | high << 4) - 32);
    }
}

void take_apart_32(int type, const uint8_t *block, Block &out) {
    out.scale = load_16(block), block += 2;
    if (FORMATS[type].has_minima) out.minimum = load_16(block), block += 2;
    if (FORMATS[type].bits == 8) {
        std::memcpy(out.quants, block, BLOCK);
    } else if (FORMATS[type].bits == 5) {
        set_nibbles(block + 4, out.quants);
        add_fifth_bits(block, out.quants);
    } else {
        set_nibbles(block, out.quants);
    }
}

void take_apart_k(int type, const uint8_t *block, Block &out) {
    const uint8_t *const end = block + FORMATS[type].bytes;
    std::memset(out.quants, 0, sizeof out.quants);
    switch (type) {
    case Q2_K: // scales, quants, float16s
        for (int i = 0; i < 16; i++) out.smalls[i / 2][i % 2] = block[i];
        for (int i = 0; i < 8; i++) add_bits(block + 16 + i / 4 * 32, i % 4 * 2, 2, 0, out.quants + i * BLOCK);
        out.scale = load_16(end - 4), out.minimum = load_16(end - 2) ^ 0x8000u;
        break;
    case Q3_K: // high bits, low bits, scales, float16
        for (int i = 0; i < 8; i++) {
            add_bits(block + 32 + i / 4 * 32, i % 4 * 2, 2, 0, out.quants + i * BLOCK);
            add_bits(block, i, 1, 2, out.quants + i * BLOCK);
        }
        set_small_scales(block + 96, out.smalls);
        out.scale = load_16(end - 2);
        break;
    case Q4_K: // float16s, scales, quants
    case Q5_K: // float16s, scales, high bits, quants
        out.scale = load_16(block), out.minimum = load_16(block + 2) ^ 0x8000u;
        set_small_pairs(block + 4, out.smalls);
        for (int i = 0; i < 8; i++) {
            add_bits(end - 128 + i / 2 * 32, i % 2 * 4, 4, 0, out.quants + i * BLOCK);
            if (type == Q5_K) add_bits(block + 16, i, 1, 4, out.quants + i * BLOCK);
        }
        break;
    case Q6_K: // low bits, high bits, scales, float16
        for (int i = 0; i < 8; i++) {
            add_bits(block + i / 4 * 64 + i % 2 * 32, i % 4 / 2 * 4, 4, 0, out.quants + i * BLOCK);
            add_bits(block + 128 + i / 4 * 32, i % 4 * 2, 2, 4, out.quants + i * BLOCK);
        }
        std::memcpy(out.smalls, block + 192, 16);
        out.scale = load_16(end - 2);
        break;
    case IQ4_XS: // float16, high bits of the scales, their low bits, quants
        out.scale = load_16(block);
        for (int i = 0; i < 8; i++) {
            const int low = (block[4 + i / 2] >> (i % 2 * 4)) & 15, high = (load_16(block + 2) >> (2 * i)) & 3;
            out.smalls[i][0] = uint8_t((low | high << 4) - 32);
            set_nibbles(block + 8 + 16 * i, out.quants + i * BLOCK);
        }
        break;
    }
}

void store_16(uint16_t value, uint8_t *to) { std::memcpy(to, &value, 2); }

// What add_bits, set_nibbles, add_fifth_bits, set_small_pairs and set_small_scales read.
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
    store_16(block.scale, out), out += 2;
    if (FORMATS[type].has_minima) store_16(block.minimum, out), out += 2;
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
        for (int i = 0; i < 16; i++) out[i] = block.smalls[i / 2][i % 2];
        for (int i = 0; i < 8; i++) put_bits(block.quants + i * BLOCK, 0, 2, i % 4 * 2, out + 16 + i / 4 * 32);
        store_16(block.scale, end - 4), store_16(block.minimum ^ 0x8000u, end - 2);
        break;
    case Q3_K:
        for (int i = 0; i < 8; i++) {
            put_bits(block.quants + i * BLOCK, 0, 2, i % 4 * 2, out + 32 + i / 4 * 32);
            put_bits(block.quants + i * BLOCK, 2, 1, i, out);
        }
        put_small_scales(block.smalls, out + 96);
        store_16(block.scale, end - 2);
        break;
    case Q4_K:
    case Q5_K:
        store_16(block.scale, out), store_16(block.minimum ^ 0x8000u, out + 2);
        put_small_pairs(block.smalls, out + 4);
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
        std::memcpy(out + 192, block.smalls, 16);
        store_16(block.scale, end - 2);
        break;
    case IQ4_XS:
        store_16(block.scale, out);
        for (int i = 0, high = 0; i < 8; i++) {
            const int small = uint8_t(block.smalls[i][0] + 32);
            out[4 + i / 2] = uint8_t(out[4 + i / 2] | (small & 15) << (i % 2 * 4));
            high |= (small >> 4) << (2 * i);
            store_16(uint16_t(high), out + 2);
            put_nibbles(block.quants + i * BLOCK, out + 8 + 16 * i);
        }
        break;
    }
}

uint32_t load_32(const uint8_t *from) {
    uint32_t value;
    std::memcpy(&value, from, 4);
    return value;
}

void store_32(uint32_t value, uint8_t *to) { std::memcpy(to, &value, 4); }

// 32 quants to the planes of a panel's row.
void pack_quants(int bits, const uint8_t *quants, uint8_t *to) {
    constexpr int PLANE = 4 * PANEL;
    uint32_t words[8], low[8], high[8];
    std::memcpy(words, quants, sizeof words);
    if (bits == 8) {
        for (int j = 0; j < 8; j++) store_32(words[j], to + PLANE * j);
        return;
    }
    const uint32_t mask = bits < 4 ? 0x03030303u : 0x0f0f0f0fu;
    for (int j = 0; j < 8; j++) low[j] = words[j] & mask, high[j] = (words[j] & ~mask) >> (bits < 4 ? 2 : 4);
    const auto pairs = [](const uint32_t *w) { return w[0] | w[1] << 2 | w[2] << 4 | w[3] << 6; };
    if (bits < 4) {
        for (int h = 0; h < 2; h++, to += PLANE) store_32(pairs(low + 4 * h), to);
    } else {
        for (int j = 0; j < 4; j++, to += PLANE) store_32(low[j] | low[4 + j] << 4, to);
    }
    if (bits == 6) {
        for (int h = 0; h < 2; h++, to += PLANE) store_32(pairs(high + 4 * h), to);
    } else if (bits % 2) {
        uint32_t plane = 0;
        for (int j = 0; j < 8; j++) plane |= high[j] << j;
        store_32(plane, to);
    }
}

// And back.
void unpack_quants(int bits, const uint8_t *from, uint8_t *quants) {
    constexpr int PLANE = 4 * PANEL;
    uint32_t words[8];
    for (int j = 0; j < 8; j++) {
        if (bits == 8) words[j] = load_32(from + PLANE * j);
        else if (bits < 4) words[j] = (load_32(from + PLANE * (j / 4)) >> (j % 4 * 2)) & 0x03030303u;
        else words[j] = (load_32(from + PLANE * (j % 4)) >> (j / 4 * 4)) & 0x0f0f0f0fu;
        if (bits == 6) words[j] |= ((load_32(from + PLANE * (4 + j / 4)) >> (j % 4 * 2)) & 0x03030303u) << 4;
        else if (bits % 2) words[j] |= ((load_32(from + PLANE * (bits - 1)) >> j) & 0x01010101u) << (bits - 1);
    }
    std::memcpy(quants, words, sizeof words);
}

} // namespace

void take_apart(int type, const uint8_t *block, Block &out) {
    FORMATS[type].values == BLOCK ? take_apart_32(type, block, out) : take_apart_k(type, block, out);
}

void put_together(int type, const Block &block, uint8_t *out) {
    std::memset(out, 0, FORMATS[type].bytes);
    FORMATS[type].values == BLOCK ? put_together_32(type, block, out) : put_together_k(type, block, out);
}

void pack_block(int type, const Block &block, int row, uint8_t *quants, uint8_t *scales) {
    std::memcpy(scales + 2 * row, &block.scale, 2);
    if (FORMATS[type].has_minima) std::memcpy(scales + 2 * PANEL + 2 * row, &block.minimum, 2);
    for (int i = 0; i < parts(type); i++) {
        pack_quants(FORMATS[type].bits, block.quants + i * BLOCK, quants + i * quant_bytes(type) + 4 * row);
        for (int k = 0; k < FORMATS[type].smalls; k++)
            scales[head_bytes(type) + i * small_bytes(type) + k * PANEL + row] = block.smalls[i][k];
    }
}

void unpack_block(int type, const uint8_t *quants, const uint8_t *scales, int row, Block &out) {
    out.scale = load_16(scales + 2 * row);
    if (FORMATS[type].has_minima) out.minimum = load_16(scales + 2 * PANEL + 2 * row);
    for (int i = 0; i < parts(type); i++) {
        unpack_quants(FORMATS[type].bits, quants + i * quant_bytes(type) + 4 * row, out.quants + i * BLOCK);
        for (int k = 0; k < FORMATS[type].smalls; k++)
            out.smalls[i][k] = scales[head_bytes(type) + i * small_bytes(type) + k * PANEL + row];
    }
}

void widen_block(int type, const Block &block, float *out) {
    const Format &format = FORMATS[type];
    const float scale = from_f16(block.scale), minimum = format.has_minima ? from_f16(block.minimum) : 0;
    for (int at = 0; at < format.values; at += format.group) {
        const uint8_t *smalls = block.smalls[at / BLOCK], *quants = block.quants + at;
        float s = scale, m = minimum;
        if (type == Q2_K) {
            const uint8_t both = smalls[at % BLOCK / format.group];
            s *= both & 15, m *= both >> 4;
        } else if (format.smalls) {
            s *= int8_t(smalls[at % BLOCK / format.group]);
            if (format.has_minima) m *= smalls[1];
        }
        for (int i = 0; i < format.group; i++) {
            const int value = format.has_levels  ? IQ4_LEVELS[quants[i]]
                              : format.bits == 8 ? int8_t(quants[i])
                                                 : quants[i] - format.offset;
            out[at + i] = format.has_minima ? s * float(value) + m : s * float(value);
        }
    }
}

} // namespace m7b
