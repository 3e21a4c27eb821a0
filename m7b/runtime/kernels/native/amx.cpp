// x86 with AMX: 16 tokens times 16 rows a step, the sums of products in tile registers. Everything that is not
// many tokens times blocks is done as avx512vnni.cpp does it.
#include "kernels.h"
#if defined(M7B_HAS_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,amx-tile,amx-int8"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,amx-tile,amx-int8")
#endif
#include "vector_avx512.h"
#include "scaled_sum.h"
#define M7B_UNROLL_TOKENS _Pragma("GCC unroll 16")

namespace m7b {
namespace {

constexpr int N = MAX_TOKENS; // tokens in a tile
constexpr int DEPTH = 32; // blocks whose weights, 16 KiB, stay in the first level of the cache for all tokens
constexpr int BYTES = PANEL * BLOCK; // quants of a block of a panel, once they have 8 bits

// Tile registers, in two sets that take turns: sums (16 tokens of 16 rows, 32 bits) and, for activations of 16 bits,
// those of the high bytes; activations (16 tokens of 32 bytes); weights (8 words of 16 rows, just as a panel has them).
template <int SET> struct Registers {
    enum { SUMS = 0 + SET, HIGH_SUMS = 2 + SET, TOKENS = 4 + SET, WEIGHTS = 6 + SET };
};
struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, unused[14] = {};
    uint16_t bytes_a_row[16] = {64, 64, 64, 64, 32, 32, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 8, 8};
};

// In assembly, for gcc's intrinsics (12 at least) do not tell the compiler which memory they read.
template <int TO> inline void tile_load(const int8_t *from, size_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(TO) : "memory");
}
template <int FROM> inline void tile_store(int32_t *to) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(size_t(64)), "i"(FROM) : "memory");
}
template <int R> inline void tile_zero() { __asm__ volatile("tilezero %%tmm%c0" : : "i"(R)); }
template <int SUMS, int TOKENS, int WEIGHTS> inline void tile_multiply() {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUMS), "i"(TOKENS), "i"(WEIGHTS));
}
template <int SUMS, int TOKENS, int WEIGHTS> inline void tile_multiply_unsigned() {
    __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUMS), "i"(TOKENS), "i"(WEIGHTS));
}

// The tiles are this thread's while it lives; other code in the thread may want others afterwards.
struct TilesInUse {
    TilesInUse() {
        static const TileConfig config;
        __asm__ volatile("ldtilecfg %0" : : "m"(config));
    }
    ~TilesInUse() { __asm__ volatile("tilerelease"); }
};

// 16 rows of nibbles to signed bytes, those of Q4_0 less their offset of 8.
void unpack(int type, const uint8_t *quants, int n_blocks, int8_t *bytes) {
    const __m512i low = _mm512_set1_epi8(15), offset = _mm512_set1_epi8(type == Q4_0 ? 8 : 0);
    for (int b = 0; b < n_blocks; b++, quants += quant_bytes(type), bytes += BYTES)
        for (int j = 0; j < 4; j++) {
            const __m512i v = _mm512_loadu_si512(quants + 64 * j);
            _mm512_storeu_si512(bytes + 64 * j, _mm512_sub_epi8(_mm512_and_si512(v, low), offset));
            _mm512_storeu_si512(bytes + 64 * (j + 4),
                                _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(v, 4), low), offset));
        }
}

// The products of one block, into the sums of a set; for Q8_0 those of low bytes, then those of high ones.
template <int TYPE, int SET> inline void multiply(const int8_t *quants, const int8_t *tokens) {
    using R = Registers<SET>;
    tile_load<R::WEIGHTS>(quants, 64);
    tile_load<R::TOKENS>(tokens, BLOCK * activation_bytes(TYPE));
    tile_zero<R::SUMS>();
    if (TYPE == Q8_0) {
        tile_multiply_unsigned<R::SUMS, R::TOKENS, R::WEIGHTS>();
        tile_load<R::TOKENS>(tokens + BLOCK, BLOCK * activation_bytes(TYPE));
        tile_zero<R::HIGH_SUMS>();
        tile_multiply<R::HIGH_SUMS, R::TOKENS, R::WEIGHTS>();
    } else {
        tile_multiply<R::SUMS, R::TOKENS, R::WEIGHTS>();
    }
}

// Stores the products of block `b`, has the next of its set multiplied, and adds what was stored under its scales.
template <int TYPE, int SET>
inline void add_block(const int8_t *quants, const uint8_t *scales, int b, int n_blocks, const Tile &tile, V *sums) {
    constexpr int token_bytes = N * BLOCK * activation_bytes(TYPE);
    using R = Registers<SET>;
    alignas(64) int32_t dots[N * PANEL], high[TYPE == Q8_0 ? N * PANEL : 1];
    tile_store<R::SUMS>(dots);
    if (TYPE == Q8_0) tile_store<R::HIGH_SUMS>(high);
    if (b + 2 < n_blocks) multiply<TYPE, SET>(quants + size_t(b + 2) * BYTES, tile.quants + size_t(b + 2) * token_bytes);
    M7B_UNROLL_TOKENS
    for (int i = 0; i < N; i++) {
        __m512i total = _mm512_load_si512(dots + PANEL * i);
        if (TYPE == Q8_0) total = _mm512_add_epi32(total, _mm512_slli_epi32(_mm512_load_si512(high + PANEL * i), 8));
        add_scaled<TYPE>(_mm512_cvtepi32_ps(total), scales + b * scale_bytes(TYPE), tile.scales[N * b + i],
                         tile.offsets[N * b + i], sums[i]);
    }
}

// Adds blocks to sums (16 tokens, 16 rows), one after another as linear_tokens does, or begins with them. While a block
// is scaled, the next two are multiplied.
template <int TYPE>
void add_blocks(const int8_t *quants, const uint8_t *scales, int n_blocks, const Tile &tile, bool begins, float *out) {
    V sums[N];
    M7B_UNROLL_TOKENS // or the compiler keeps the sums in memory
    for (int i = 0; i < N; i++) sums[i] = begins ? v_zero() : v_load(out + PANEL * i);
    multiply<TYPE, 0>(quants, tile.quants);
    if (n_blocks > 1) multiply<TYPE, 1>(quants + BYTES, tile.quants + N * BLOCK * activation_bytes(TYPE));
    for (int b = 0; b < n_blocks; b += 2) {
        add_block<TYPE, 0>(quants, scales, b, n_blocks, tile, sums);
        if (b + 1 < n_blocks) add_block<TYPE, 1>(quants, scales, b + 1, n_blocks, tile, sums);
    }
    M7B_UNROLL_TOKENS
    for (int i = 0; i < N; i++) v_store(out + PANEL * i, sums[i]);
}

template <int TYPE>
void linear_tiles_of(const uint8_t *panels, int n_panels, int n_blocks, const Tile &tokens, int n_tiles,
                     int8_t *unpacked, float *out) {
    const size_t size = panel_bytes(TYPE, n_blocks), n_bytes = size_t(n_blocks) * BYTES;
    constexpr bool unpacks = quant_bytes(TYPE) < BYTES;
    for (int p = 0; unpacks && p < n_panels; p++) unpack(TYPE, panels + p * size, n_blocks, unpacked + p * n_bytes);
    TilesInUse in_use;
    for (int begin = 0; begin < n_blocks; begin += DEPTH)
        for (int p = 0; p < n_panels; p++)
            for (int t = 0; t < n_tiles; t++) {
                const size_t at = (size_t(t) * n_blocks + begin) * N;
                const Tile tile = {tokens.quants + at * BLOCK * activation_bytes(TYPE), tokens.scales + at,
                                   tokens.offsets + at};
                const uint8_t *panel = panels + p * size;
                const int8_t *quants = unpacks ? unpacked + p * n_bytes : reinterpret_cast<const int8_t *>(panel);
                add_blocks<TYPE>(quants + size_t(begin) * BYTES,
                                 panel + size_t(n_blocks) * quant_bytes(TYPE) + size_t(begin) * scale_bytes(TYPE),
                                 DEPTH < n_blocks - begin ? DEPTH : n_blocks - begin, tile, begin == 0,
                                 out + size_t(p * n_tiles + t) * N * PANEL);
            }
}

void linear_tiles(int type, const uint8_t *panels, int n_panels, int n_blocks, const Tile &tokens, int n_tiles,
                  int8_t *unpacked, float *out) {
    if (type == Q4_0) return linear_tiles_of<Q4_0>(panels, n_panels, n_blocks, tokens, n_tiles, unpacked, out);
    if (type == Q4_1) return linear_tiles_of<Q4_1>(panels, n_panels, n_blocks, tokens, n_tiles, unpacked, out);
    if (type == INT8) return linear_tiles_of<INT8>(panels, n_panels, n_blocks, tokens, n_tiles, unpacked, out);
    linear_tiles_of<Q8_0>(panels, n_panels, n_blocks, tokens, n_tiles, unpacked, out);
}

} // namespace

const Kernels &amx_kernels() {
    static const Kernels kernels = [] {
        Kernels k = avx512vnni_kernels;
        k.name = "amx", k.linear_tiles = linear_tiles;
        return k;
    }();
    return kernels;
}

bool may_use_tiles() {
    constexpr int REQUEST = 0x1023, TILE_DATA = 18; // Linux: ARCH_REQ_XCOMP_PERM, for the whole process
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

} // namespace m7b
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
