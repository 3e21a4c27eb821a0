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
#include <array>

#include "vector_avx512.h"
#include "quants.h"
#include "scaled_sum.h"
#define M7B_UNROLL_TOKENS _Pragma("GCC unroll 16")

namespace m7b {
namespace {

constexpr int N = MAX_TOKENS; // tokens in a tile
constexpr int DEPTH = 16; // parts whose weights, 8 KiB, stay in the first level of the cache for all tokens
constexpr int BYTES = PANEL * BLOCK; // quants of a block of a panel, once they have 8 bits

// Tile registers, in two sets that take turns: sums (16 tokens of 16 rows, 32 bits) and, for activations of 16 bits,
// those of the high bytes; activations (16 tokens of 32 bytes); weights (8 words of 16 rows, just as a panel has them).
template <int SET> struct Registers {
    enum { SUMS = 0 + SET, HIGH_SUMS = 2 + SET, TOKENS = 4 + SET, WEIGHTS = 6 + SET };
};
// For two groups of 16 values, HIGH_SUMS are those of the second, and each group has a register of weights, with zeros
// where the other has its own: so both are multiplied by the same tokens.
template <int TYPE> constexpr bool HAS_TWO_GROUPS = n_groups(TYPE) == 2;
template <int TYPE> constexpr bool HAS_TWO_SUMS = TYPE == Q8_0 || HAS_TWO_GROUPS<TYPE>;
template <int TYPE> constexpr int UNPACKED_BYTES = HAS_TWO_GROUPS<TYPE> ? BYTES + BYTES / 2 : BYTES; // of a part
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

// The quants of 16 rows to signed bytes; of two groups, with half as many zeros between them.
template <int TYPE> void unpack(const uint8_t *quants, int n_parts, int8_t *bytes) {
    const __m512i offset = _mm512_set1_epi8(FORMATS[TYPE].offset);
    for (int b = 0; b < n_parts; b++, quants += quant_bytes(TYPE), bytes += UNPACKED_BYTES<TYPE>) {
        __m512i words[8];
        load_words<TYPE, 0, 8>(quants, words);
        for (int j = 0; j < 8; j++) {
            const int at = HAS_TWO_GROUPS<TYPE> && j >= 4 ? j + 4 : j;
            _mm512_store_si512(bytes + 64 * at, _mm512_sub_epi8(words[j], offset));
            if (HAS_TWO_GROUPS<TYPE> && j >= 4) _mm512_store_si512(bytes + 64 * j, _mm512_setzero_si512());
        }
    }
}

// The products of one part, into the sums of a set; for Q8_0 those of low bytes, then those of high ones.
template <int TYPE, int SET> inline void multiply(const int8_t *quants, const int8_t *tokens) {
    using R = Registers<SET>;
    tile_load<R::TOKENS>(tokens, BLOCK * activation_bytes(TYPE));
    tile_zero<R::SUMS>();
    if constexpr (HAS_TWO_GROUPS<TYPE>) {
        constexpr int FIRST = Registers<0>::WEIGHTS, SECOND = Registers<1>::WEIGHTS;
        tile_zero<R::HIGH_SUMS>();
        tile_load<FIRST>(quants, 64);
        tile_load<SECOND>(quants + BYTES / 2, 64);
        tile_multiply<R::SUMS, R::TOKENS, FIRST>();
        tile_multiply<R::HIGH_SUMS, R::TOKENS, SECOND>();
        return;
    }
    tile_load<R::WEIGHTS>(quants, 64);
    if constexpr (TYPE == Q8_0) {
        tile_multiply_unsigned<R::SUMS, R::TOKENS, R::WEIGHTS>();
        tile_load<R::TOKENS>(tokens + BLOCK, BLOCK * activation_bytes(TYPE));
        tile_zero<R::HIGH_SUMS>();
        tile_multiply<R::HIGH_SUMS, R::TOKENS, R::WEIGHTS>();
    } else {
        tile_multiply<R::SUMS, R::TOKENS, R::WEIGHTS>();
    }
}

// What tiles stored is read LAG blocks later: a load that follows its store would wait for it.
constexpr int LAG = 2;
template <int TYPE> struct Dots {
    alignas(64) int32_t low[LAG + 2][N * PANEL], high[HAS_TWO_SUMS<TYPE> ? LAG + 2 : 1][HAS_TWO_SUMS<TYPE> ? N * PANEL : 1];
};

// Stores the products of part `b` and has the next of its set multiplied.
template <int TYPE, int SET>
inline void store_part(const int8_t *quants, int b, int n_parts, const Tile &tile, Dots<TYPE> &dots) {
    constexpr int token_bytes = N * BLOCK * activation_bytes(TYPE);
    using R = Registers<SET>;
    tile_store<R::SUMS>(dots.low[b % (LAG + 2)]);
    if constexpr (HAS_TWO_SUMS<TYPE>) tile_store<R::HIGH_SUMS>(dots.high[b % (LAG + 2)]);
    if (b + 2 < n_parts) multiply<TYPE, SET>(quants + size_t(b + 2) * UNPACKED_BYTES<TYPE>, tile.quants + size_t(b + 2) * token_bytes);
}

// Adds what was stored of part `b` under its scales.
template <int TYPE> inline void add_part(const Scales<TYPE> &scales, int b, const Tile &tile, const Dots<TYPE> &dots, V *sums) {
    M7B_UNROLL_TOKENS
    for (int i = 0; i < N; i++) {
        __m512i total = _mm512_load_si512(dots.low[b % (LAG + 2)] + PANEL * i);
        V groups[2];
        if constexpr (HAS_TWO_SUMS<TYPE>) {
            const __m512i high = _mm512_load_si512(dots.high[b % (LAG + 2)] + PANEL * i);
            if constexpr (TYPE == Q8_0) total = _mm512_add_epi32(total, _mm512_slli_epi32(high, 8));
            else groups[1] = _mm512_cvtepi32_ps(high);
        }
        groups[0] = _mm512_cvtepi32_ps(total);
        add_scaled<TYPE>(groups, scales, tile, size_t(N) * b + i, sums[i]);
    }
}

// Adds parts of rows from the first on to sums (16 tokens, 16 rows), one after another as every linear does, or begins
// with them. While one is scaled, the next are multiplied.
template <int TYPE>
void add_parts(const int8_t *quants, const uint8_t *scales, int first, int n_parts, const Tile &tile, bool begins,
               const uint8_t *next, float *out) {
    Dots<TYPE> dots;
    V sums[N];
    M7B_UNROLL_TOKENS // or the compiler keeps the sums in memory
    for (int i = 0; i < N; i++) sums[i] = begins ? v_zero() : v_load(out + PANEL * i);
    multiply<TYPE, 0>(quants, tile.quants);
    if (n_parts > 1) multiply<TYPE, 1>(quants + UNPACKED_BYTES<TYPE>, tile.quants + N * BLOCK * activation_bytes(TYPE));
    for (int b = 0; b < n_parts + LAG; b++) {
        if (b < n_parts) {
            if (b % 2) store_part<TYPE, 1>(quants, b, n_parts, tile, dots);
            else store_part<TYPE, 0>(quants, b, n_parts, tile, dots);
        }
        for (int i = 0; next && i < quant_bytes(TYPE); i += 64) __builtin_prefetch(next + b * quant_bytes(TYPE) + i, 0, 2);
        if (b < LAG) continue;
        const int part = first + b - LAG; // of the row
        add_part<TYPE>({scales + head_at(TYPE, part), scales + small_at(TYPE, part)}, b - LAG, tile, dots, sums);
    }
    M7B_UNROLL_TOKENS
    for (int i = 0; i < N; i++) v_store(out + PANEL * i, sums[i]);
}

template <int TYPE>
void linear_tiles(const uint8_t *panels, int n_panels, int n_parts, const Tile &tokens, int n_tiles, float *out) {
    constexpr bool unpacks = quant_bytes(TYPE) < BYTES;
    alignas(64) int8_t unpacked[unpacks ? DEPTH * UNPACKED_BYTES<TYPE> : 1];
    const size_t size = panel_bytes(TYPE, n_parts);
    const TilesInUse in_use;
    for (int begin = 0; begin < n_parts; begin += DEPTH)
        for (int p = 0; p < n_panels; p++) {
            const int n = DEPTH < n_parts - begin ? DEPTH : n_parts - begin;
            const uint8_t *panel = panels + p * size, *packed = panel + size_t(begin) * quant_bytes(TYPE);
            const uint8_t *scales = panel + size_t(n_parts) * quant_bytes(TYPE);
            if (unpacks) unpack<TYPE>(packed, n, unpacked);
            const int8_t *quants = unpacks ? unpacked : reinterpret_cast<const int8_t *>(packed);
            for (int t = 0; t < n_tiles; t++) {
                const Tile tile = tokens.from((size_t(t) * n_parts + begin) * N, activation_bytes(TYPE));
                add_parts<TYPE>(quants, scales, begin, n, tile, begin == 0, t ? nullptr : packed + DEPTH * quant_bytes(TYPE),
                                 out + size_t(p * n_tiles + t) * N * PANEL);
            }
        }
}

template <int... TYPE> constexpr std::array<LinearTiles, N_TYPES> all_tiles(std::integer_sequence<int, TYPE...>) {
    return {{linear_tiles<TYPE>...}};
}
constexpr std::array<LinearTiles, N_TYPES> LINEAR_TILES = all_tiles(std::make_integer_sequence<int, N_TYPES>());

} // namespace

const Kernels &amx_kernels() {
    static const Kernels kernels = [] {
        Kernels k = avx512vnni_kernels;
        k.name = "amx", k.linears = avx512vnni_linears_ahead, k.linear_tiles = LINEAR_TILES.data();
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
