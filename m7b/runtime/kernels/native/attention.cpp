// Attention over the ring of a layer: how queries, heads and slots are shared out among threads.
#include <algorithm>
#include <cmath>
#include <vector>

#include "arrays.h"
#include "operations.h"
#include "pool.h"

namespace m7b {
namespace {

// The keys of one part of one head with the slots side by side: (n, D) to (D, PART).
void turn(const uint16_t *keys, int n, int D, uint16_t *turned) {
    for (int d = 0; d < D; d++)
        for (int s = 0; s < n; s++) turned[size_t(d) * PART + s] = keys[size_t(s) * D + d];
}

// Brings the splits of one row under one maximum, and stores their sum divided by the total weight.
void merge(const float *results, int n_splits, size_t stride, int D, int row, Array out, size_t at) {
    static thread_local std::vector<float> sum;
    float top = -INFINITY, total = 0;
    for (int i = 0; i < n_splits; i++) top = std::max(top, results[i * stride + MAX_ROWS * D + row]);
    sum.assign(D, 0.0f);
    for (int i = 0; i < n_splits; i++) {
        const float *result = results + i * stride, its_top = result[MAX_ROWS * D + row];
        if (its_top == -INFINITY) continue;
        const float weight = std::exp(its_top - top);
        total += weight * result[MAX_ROWS * D + MAX_ROWS + row];
        for (int d = 0; d < D; d++) sum[d] += weight * result[row * D + d];
    }
    for (float &value : sum) value /= total > 0 ? total : 1.0f;
    store_floats(sum.data(), D, out, at);
}

} // namespace

// Few queries are shared out over slots as well as heads, a part at a time; the split depends on the shapes alone,
// so the number of threads changes no result. Many share keys that are turned for them once, and go through the parts
// in groups, for which a part stays in the cache.
void attend(Array queries, const uint16_t *keys, const uint16_t *values, const uint16_t *bias, Shape s,
            Array out, int n_threads) {
    constexpr int GROUP = 8;
    const bool are_few = s.T <= FEW_TOKENS;
    const int G = s.H / s.K, n_rows = s.T * G, n_tiles = (n_rows + MAX_ROWS - 1) / MAX_ROWS;
    const int group = are_few ? 1 : GROUP, n_groups = (n_tiles + group - 1) / group;
    const int n_parts = (s.S + PART - 1) / PART, n_splits = are_few ? n_parts : 1, n_each = n_parts / n_splits;
    const size_t stride = MAX_ROWS * (s.D + 2); // the mixed values of the rows, then their tops and totals
    const float scale = 1.0f / std::sqrt(float(s.D));
    // Row r of a kv head is head r % G of token r / G.
    const auto row_at = [&](int k, int r) { return (size_t(r / G) * s.H + size_t(k) * G + r % G) * s.D; };
    static std::vector<float> results;
    static std::vector<uint16_t> turned;
    results.resize(size_t(s.K) * n_tiles * n_splits * stride);
    if (!are_few) {
        turned.resize(size_t(s.K) * n_parts * PART * s.D);
        parallel(n_threads, s.K * n_parts, [&](int item) {
            const int k = item / n_parts, begin = item % n_parts * PART;
            turn(keys + k * s.kv_stride + size_t(begin) * s.D, std::min(PART, s.S - begin), s.D,
                 &turned[size_t(item) * PART * s.D]);
        });
    }
    parallel(n_threads, s.K * n_groups * n_splits, [&](int item) {
        static thread_local std::vector<float> rows;
        const int split = item % n_splits, first = item / n_splits % n_groups * group, k = item / n_splits / n_groups;
        const int n = std::min(group, n_tiles - first);
        Attention tiles[GROUP] = {};
        rows.resize(size_t(n) * MAX_ROWS * s.D);
        for (int i = 0; i < n; i++) {
            Attention &tile = tiles[i];
            tile.rows = std::min(MAX_ROWS, n_rows - (first + i) * MAX_ROWS);
            float *row = &rows[size_t(i) * MAX_ROWS * s.D];
            tile.queries = row;
            for (int r = 0; r < tile.rows; r++, row += s.D) {
                const int of_head = (first + i) * MAX_ROWS + r;
                load_floats(queries, row_at(k, of_head), s.D, row);
                for (int d = 0; d < s.D; d++) row[d] *= scale;
                tile.bias[r] = bias + size_t(of_head / G) * s.S;
            }
            tile.keys = keys + k * s.kv_stride;
            tile.turned = are_few ? nullptr : &turned[size_t(k) * n_parts * PART * s.D];
            tile.values = values + k * s.kv_stride;
            tile.head_dim = s.D;
            tile.mixed = &results[((size_t(k) * n_tiles + first + i) * n_splits + split) * stride];
            tile.top = tile.mixed + MAX_ROWS * s.D;
            tile.total = tile.top + MAX_ROWS;
        }
        for (int part = split * n_each; part < (split + 1) * n_each; part++)
            for (int i = 0; i < n; i++) {
                tiles[i].begin = part * PART, tiles[i].end = std::min(s.S, (part + 1) * PART);
                kernels().attend(tiles[i]);
                tiles[i].resumes = true;
            }
    });
    parallel(are_few ? 1 : n_threads, s.K * n_tiles, [&](int item) {
        const int tile = item % n_tiles, k = item / n_tiles, n = std::min(MAX_ROWS, n_rows - tile * MAX_ROWS);
        for (int r = 0; r < n; r++)
            merge(&results[size_t(item) * n_splits * stride], n_splits, stride, s.D, r, out,
                  row_at(k, tile * MAX_ROWS + r));
    });
}

} // namespace m7b
