#include "operations.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "arrays.h"
#include "numbers.h"
#include "pool.h"

namespace m7b {
namespace {

// Whether T tokens are worked on in whole tiles, the last one filled up. (Xeon with AMX: fewer take less time by VNNI.)
bool in_tiles(int T) { return kernels().linear_tiles && T > 12; }
int tiles(int T) { return (T + MAX_TOKENS - 1) / MAX_TOKENS; }

// Items of work for a loop over `n` like parts: large enough to stream, small enough to share out.
int share(int n, int n_threads) { return std::max(1, n / (n_threads * 8)); }

// Panels that T tokens are multiplied by in one item. Few tokens run through many, for the start of a stream is slow;
// many leave them in the cache from one tile to the next, at least two, whose results fill whole lines of it.
int panels_a_item(int T, int n_panels, int n_threads) {
    if (T <= FEW_TOKENS) return (share(n_panels, n_threads) + 3) / 4 * 4;
    return in_tiles(T) || T < 2 * MAX_TOKENS ? 4 : 2;
}

int n_panels(int n_rows) { return (n_rows + PANEL - 1) / PANEL; }

struct Quantized {
    std::vector<int8_t> quants;
    std::vector<float> scales, sums, half_sums;
    std::vector<int32_t> offsets, half_offsets;

    Tile tile() const {
        return {quants.data(), scales.data(), offsets.data(), half_offsets.data(), sums.data(), half_sums.data()};
    }
};

// 32 quants of 16 bits, in the order of a Tile, to their low bytes and their high ones.
void split_bytes(int8_t *quants) {
    constexpr int order[4] = {0, 2, 1, 3};
    int16_t wide[BLOCK];
    std::memcpy(wide, quants, sizeof wide);
    for (int i = 0; i < BLOCK; i++) {
        const int16_t value = wide[i / 4 * 4 + order[i % 4]];
        quants[i] = int8_t(value & 0xff), quants[BLOCK + i] = int8_t(value >> 8);
    }
}

void quantize_tokens(Array x, int T, int n_in, int n_bytes, Quantized &to, int n_threads) {
    const int n_blocks = n_in / BLOCK, whole = in_tiles(T) ? tiles(T) * MAX_TOKENS : T;
    to.quants.resize(size_t(whole) * n_in * n_bytes);
    const size_t n_scales = size_t(whole) * n_blocks;
    for (auto *each : {&to.scales, &to.sums}) each->resize(n_scales);
    to.half_sums.resize(2 * n_scales), to.offsets.resize(n_scales), to.half_offsets.resize(2 * n_scales);
    std::vector<int> firsts; // of each tile, whose quants one thread writes, for they share lines of the cache
    for (int t = 0; t < T; t += tile_size(whole - t)) firsts.push_back(t);
    parallel(n_threads, int(firsts.size()), [&](int item) {
        static thread_local std::vector<float> row;
        row.resize(n_in);
        const int first = firsts[item], n = tile_size(whole - first);
        for (int i = 0; i < n && first + i < T; i++) {
            load_floats(x, size_t(first + i) * n_in, n_in, row.data());
            for (int b = 0; b < n_blocks; b++) {
                const size_t at = size_t(first) * n_blocks + size_t(b) * n + i;
                const float *values = &row[size_t(b) * BLOCK];
                int8_t *quants = &to.quants[at * BLOCK * n_bytes];
                if (n_bytes == 1) {
                    int32_t sums[2];
                    kernels().quantize_block(values, quants, &to.scales[at], sums);
                    for (int half = 0; half < 2; half++) {
                        to.half_offsets[2 * at + half] = -8 * sums[half];
                        to.half_sums[2 * at + half] = to.scales[at] * float(sums[half]);
                    }
                    to.offsets[at] = -8 * (sums[0] + sums[1]);
                    to.sums[at] = to.scales[at] * float(sums[0] + sums[1]);
                    continue;
                }
                kernels().quantize_block_16(values, reinterpret_cast<int16_t *>(quants), &to.scales[at]);
                if (in_tiles(T)) split_bytes(quants);
            }
        }
        for (int b = 0; kernels().pair && b < n_blocks; b++)
            kernels().pair(&to.quants[(size_t(first) * n_blocks + size_t(b) * n) * BLOCK * n_bytes], n, n_bytes);
    });
}

// The results (PANEL,) of one panel and one token, without those of rows that only fill the panel.
void store_panel(const float *out, const Weight &weight, int panel, int t, int dtype) {
    const int row = panel * PANEL;
    store_floats(out, std::min(PANEL, weight.n_out - row), {weight.y, dtype}, size_t(t) * weight.n_out + row);
}

// Some panels times all tokens, a tile of them after another. Several panels are read side by side, and each of these
// streams runs on through several, for its start is slow.
void linear_panels(const Weight &weight, int first, int n_panels, int n_blocks, const Quantized &tokens, int T, int dtype) {
    alignas(64) float out[MAX_TOKENS * PANEL]; // at_once(n) * n is no more
    const int n_bytes = activation_bytes(weight.type);
    const size_t size = panel_bytes(weight.type, n_blocks);
    for (int t = 0, n; t < T; t += n) {
        n = tile_size(T - t);
        const Tile tile = tokens.tile().from(size_t(t) * n_blocks, n_bytes);
        // Panels `distance` apart; 0: one panel, several times over.
        const auto multiply = [&](int panel, int distance) {
            kernels().linears[weight.type].of[n](weight.panels + panel * size, distance * size, n_blocks, tile, out);
            for (int p = 0; p < (distance ? at_once(n) : 1); p++)
                for (int i = 0; i < n; i++)
                    store_panel(out + (p * n + i) * PANEL, weight, panel + p * distance, t + i, dtype);
        };
        const int n_each = n_panels / at_once(n), last = first + n_panels;
        for (int panel = first; panel < first + n_each; panel++) multiply(panel, n_each);
        for (int panel = first + n_each * at_once(n); panel < last; panel++) multiply(panel, 0);
    }
}

// Some panels times all tokens, in whole tiles. Many of these stay in the second level of the cache from panel to panel;
// one or two do anyway, and then each panel is read in one go.
void linear_tiles(const Weight &weight, int first, int n_panels, int n_blocks, const Quantized &tokens, int T, int dtype) {
    static thread_local std::vector<float> out;
    const size_t n_tokens = size_t(tiles(T)) * MAX_TOKENS;
    out.resize(n_panels * n_tokens * PANEL);
    const uint8_t *panels = weight.panels + first * panel_bytes(weight.type, n_blocks);
    const Tile tile = tokens.tile();
    const int n_each = tiles(T) > 2 ? n_panels : 1;
    for (int p = 0; p < n_panels; p += n_each)
        kernels().linear_tiles[weight.type](panels + p * panel_bytes(weight.type, n_blocks), n_each, n_blocks, tile, tiles(T),
                                            &out[p * n_tokens * PANEL]);
    for (int t = 0; t < T; t++)
        for (int p = 0; p < n_panels; p++)
            store_panel(&out[(p * n_tokens + t) * PANEL], weight, first + p, t, dtype);
}

struct Rows {
    const uint16_t *at;
    size_t stride;
};

// Some columns of some rows of the weight stay in the cache, widened, while all tokens pass. find(row, n_rows, first,
// depth) says where these are.
template <class Find> void linear_dense(Find find, Array x, int T, int n_in, int n_out, Array y, int n_threads) {
    static std::vector<float> tiles; // for each DENSE_DEPTH columns (n_tiles, DENSE_DEPTH, n)
    const int n = kernels().dense_tokens, n_tiles = (T + n - 1) / n;
    const size_t n_tokens = size_t(n_tiles) * n;
    tiles.resize(n_tokens * n_in);
    parallel(n_threads, n_tiles, [&](int tile) {
        static thread_local std::vector<float> row;
        for (int i = 0; i < n; i++) {
            row.assign(n_in, 0.0f);
            if (tile * n + i < T) load_floats(x, size_t(tile * n + i) * n_in, n_in, row.data());
            for (int first = 0; first < n_in; first += DENSE_DEPTH) {
                const int depth = std::min(DENSE_DEPTH, n_in - first);
                float *to = &tiles[first * n_tokens + size_t(tile) * depth * n + i];
                for (int k = 0; k < depth; k++) to[k * n] = row[first + k];
            }
        }
    });
    parallel(n_threads, (n_out + DENSE_ROWS - 1) / DENSE_ROWS, [&](int item) {
        static thread_local std::vector<float> out;
        out.assign(n_tokens * DENSE_ROWS, 0.0f);
        const int row = item * DENSE_ROWS, n_rows = std::min(DENSE_ROWS, n_out - row);
        for (int first = 0; first < n_in; first += DENSE_DEPTH) {
            const int depth = std::min(DENSE_DEPTH, n_in - first);
            const Rows rows = find(row, n_rows, first, depth);
            kernels().linear_dense(rows.at, rows.stride, n_rows, depth, &tiles[first * n_tokens], n_tiles, out.data());
        }
        for (int t = 0; t < T; t++)
            store_floats(&out[size_t(t) * DENSE_ROWS], n_rows, y, size_t(t) * n_out + row);
    });
}

// A whole array, until the next call; one operation runs at a time.
const float *all_floats(Array x, size_t n) {
    static std::vector<float> values;
    values.resize(n);
    load_floats(x, 0, n, values.data());
    return values.data();
}

// ROWS rows times few tokens: of the first n_rows, results `distance` apart.
void multiply_rows(Rows rows, const float *x, int T, int n_in, int n_rows, Array y, int n_out, int row, int distance) {
    float out[4 * ROWS];
    for (int t = 0, n; t < T; t += n) {
        n = std::min(4, T - t);
        kernels().linear_bf16(rows.at, rows.stride, n_in, x + size_t(t) * n_in, n, out);
        for (int i = 0; i < n; i++)
            for (int r = 0; r < n_rows; r++)
                store_floats(&out[ROWS * i + r], 1, y, size_t(t + i) * n_out + row + r * distance);
    }
}

// Columns [first, first + depth), whole blocks, of some rows.
void widen_rows(const LevelWeight &weight, int n_in, int row, int n_rows, int first, int depth, uint16_t *out) {
    for (int r = row; r < row + n_rows; r++)
        for (int k = first; k < first + depth; k += LEVELS_BLOCK, out += LEVELS_BLOCK) {
            const size_t at = size_t(r) * n_in + k;
            kernels().widen_levels(weight.quants + at / 2, weight.scales[at / LEVELS_BLOCK], weight.levels, out);
        }
}

constexpr size_t PIECE = 4096;

// Calls work(at, size) for pieces of n values, by several threads where there are many.
template <class F> void in_pieces(size_t n, int n_threads, F work) {
    const int n_items = int((n + PIECE - 1) / PIECE);
    parallel(n_items > 8 ? n_threads : 1, n_items,
             [&](int item) { work(item * PIECE, std::min(PIECE, n - item * PIECE)); });
}

} // namespace

void pack(int type, const uint8_t *blocks, int n_rows, int n_in, uint8_t *panels, int n_threads) {
    const int n_blocks = n_in / FORMATS[type].values, bytes = FORMATS[type].bytes;
    const size_t size = panel_bytes(type, n_in / BLOCK);
    parallel(n_threads, n_panels(n_rows), [&](int p) {
        const int n = std::min(PANEL, n_rows - p * PANEL);
        if (n < PANEL) std::memset(panels + p * size, 0, size);
        pack_panel(type, blocks + size_t(p) * PANEL * n_blocks * bytes, n, n_blocks, panels + p * size);
    });
}

void widen(int type, const uint8_t *blocks, size_t n_blocks, float *values, int n_threads) {
    constexpr size_t PIECE = 64; // blocks
    parallel(n_threads, int((n_blocks + PIECE - 1) / PIECE), [&](int item) {
        for (size_t b = item * PIECE; b < std::min(n_blocks, (item + 1) * PIECE); b++)
            widen_block(type, blocks + b * FORMATS[type].bytes, values + b * FORMATS[type].values);
    });
}

void look_up(int type, const uint8_t *panels, int n_in, const int64_t *rows, int n, Array y, int n_threads) {
    const size_t size = panel_bytes(type, n_in / BLOCK);
    parallel(n > 8 ? n_threads : 1, n, [&](int i) {
        static thread_local std::vector<float> values;
        values.resize(n_in);
        widen_row(type, panels + rows[i] / PANEL * size, n_in / FORMATS[type].values, int(rows[i] % PANEL), values.data());
        store_floats(values.data(), n_in, y, size_t(i) * n_in);
    });
}

void linear(const Weight *weights, int n_weights, Array x, int T, int n_in, int n_threads) {
    static Quantized quantized[2]; // to 8 and 16 bits; kept from call to call; one call runs at a time
    for (int n_bytes = 1; n_bytes <= 2; n_bytes++)
        if (std::any_of(weights, weights + n_weights, [&](auto &w) { return activation_bytes(w.type) == n_bytes; }))
            quantize_tokens(x, T, n_in, n_bytes, quantized[n_bytes - 1], n_threads);
    const int n_blocks = n_in / BLOCK;
    std::vector<int> ends; // one past the last panel of each weight, counted through all of them
    for (int i = 0; i < n_weights; i++) ends.push_back((i ? ends[i - 1] : 0) + n_panels(weights[i].n_out));
    const int step = panels_a_item(T, ends.back(), n_threads);
    parallel(n_threads, (ends.back() + step - 1) / step, [&](int item) {
        const int last = std::min(ends.back(), (item + 1) * step);
        for (int p = item * step, n_done; p < last; p += n_done) {
            const size_t i = std::upper_bound(ends.begin(), ends.end(), p) - ends.begin();
            const Quantized &tokens = quantized[activation_bytes(weights[i].type) - 1];
            n_done = std::min(last, ends[i]) - p;
            const auto multiply = in_tiles(T) ? linear_tiles : linear_panels;
            multiply(weights[i], p - (i ? ends[i - 1] : 0), n_done, n_blocks, tokens, T, x.dtype);
        }
    });
}

void linear_bf16(const uint16_t *weight, Array x, int T, int n_in, int n_out, Array y, int n_threads) {
    if (T > FEW_TOKENS && kernels().linear_dense) {
        const auto find = [&](int row, int, int first, int) -> Rows {
            return {weight + size_t(row) * n_in + first, size_t(n_in)};
        };
        return linear_dense(find, x, T, n_in, n_out, y, n_threads);
    }
    const float *values = all_floats(x, size_t(T) * n_in);
    // ROWS rows at once, `distance` from each other; 0: one row, ROWS times over.
    const auto multiply = [&](int row, int distance) {
        const Rows rows = {weight + size_t(row) * n_in, size_t(distance) * n_in};
        multiply_rows(rows, values, T, n_in, distance ? ROWS : 1, y, n_out, row, distance);
    };
    // Each of the streams runs on through `most` rows, for its start is slow.
    const int most = std::max(1, std::min(16, n_out / (ROWS * 8 * n_threads))), n_rows = ROWS * most;
    parallel(n_threads, (n_out + n_rows - 1) / n_rows, [&](int item) {
        const int begin = item * n_rows, end = std::min(n_out, begin + n_rows), n_each = (end - begin) / ROWS;
        for (int row = begin; row < begin + n_each; row++) multiply(row, n_each);
        for (int row = begin + n_each * ROWS; row < end; row++) multiply(row, 0);
    });
}

void linear_levels(const LevelWeight &weight, Array x, int T, int n_in, int n_out, Array y, int n_threads) {
    if (T > FEW_TOKENS && kernels().linear_dense) {
        const auto find = [&](int row, int n_rows, int first, int depth) -> Rows {
            alignas(64) static thread_local uint16_t rows[DENSE_ROWS * DENSE_DEPTH];
            widen_rows(weight, n_in, row, n_rows, first, depth, rows);
            return {rows, size_t(depth)};
        };
        return linear_dense(find, x, T, n_in, n_out, y, n_threads);
    }
    const float *values = all_floats(x, size_t(T) * n_in);
    parallel(n_threads, (n_out + ROWS - 1) / ROWS, [&](int item) {
        static thread_local std::vector<uint16_t> rows;
        const int row = item * ROWS, n_rows = std::min(ROWS, n_out - row);
        rows.resize(size_t(ROWS) * n_in); // of those beyond the last, the products go nowhere
        widen_rows(weight, n_in, row, n_rows, 0, n_in, rows.data());
        multiply_rows({rows.data(), size_t(n_in)}, values, T, n_in, n_rows, y, n_out, row, 1);
    });
}

void rms_norm(Array x, Array weight, int T, int dim, float eps, Array y, int n_threads) {
    const float *weights = all_floats(weight, dim);
    parallel(T > 8 ? n_threads : 1, T, [&](int t) {
        static thread_local std::vector<float> row;
        row.resize(2 * size_t(dim));
        load_floats(x, size_t(t) * dim, dim, row.data());
        kernels().rms_norm(row.data(), weights, dim, eps, y.dtype == BF16, &row[dim]);
        store_floats(&row[dim], dim, y, size_t(t) * dim);
    });
}

void rotate(Array x, const float *cos, const float *sin, int T, int heads, int D, Array y, int n_threads) {
    const int half = D / 2;
    parallel(T > 8 ? n_threads : 1, T, [&](int t) {
        static thread_local std::vector<float> values;
        values.resize(2 * size_t(D));
        const float *c = cos + size_t(t) * half, *s = sin + size_t(t) * half;
        for (int row = t * heads; row < (t + 1) * heads; row++) {
            float *from = values.data(), *turned = from + D;
            load_floats(x, size_t(row) * D, D, from);
            for (int i = 0; i < half; i++) {
                turned[i] = from[i] * c[i] - from[half + i] * s[i];
                turned[half + i] = from[half + i] * c[i] + from[i] * s[i];
            }
            store_floats(turned, D, y, size_t(row) * D);
        }
    });
}

void add(uint16_t *h, const uint16_t *y, size_t n, int n_threads) {
    in_pieces(n, n_threads, [&](size_t at, size_t size) { kernels().add(h + at, y + at, size); });
}

void swiglu(Array gate, Array up, size_t n, Array y, int n_threads) {
    in_pieces(n, n_threads, [&](size_t at, size_t size) {
        float a[PIECE], b[PIECE];
        load_floats(gate, at, size, a);
        load_floats(up, at, size, b);
        kernels().swiglu(a, b, int(size), a);
        store_floats(a, size, y, at);
    });
}

void prefer_large_pages(void *memory, size_t n) {
#if defined(__linux__)
    constexpr uintptr_t PAGE = 4096;
    const uintptr_t begin = (uintptr_t(memory) + PAGE - 1) / PAGE * PAGE, end = (uintptr_t(memory) + n) / PAGE * PAGE;
    if (begin < end) madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE); // a wish, not a need
#endif
}

uint64_t sum_bytes(const uint8_t *bytes, size_t n, int n_threads) {
    constexpr size_t PIECE = 1 << 20;
    std::vector<uint64_t> sums((n + PIECE - 1) / PIECE);
    parallel(n_threads, int(sums.size()), [&](int i) {
        sums[i] = kernels().sum_bytes(bytes + i * PIECE, std::min(PIECE, n - i * PIECE));
    });
    uint64_t sum = 0;
    for (uint64_t s : sums) sum += s;
    return sum;
}

} // namespace m7b
