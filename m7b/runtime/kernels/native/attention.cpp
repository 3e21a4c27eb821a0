// Attention over rings: how spans, heads, queries and slots are shared out among threads.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "arrays.h"
#include "numbers.h"
#include "operations.h"
#include "pool.h"

namespace m7b {
namespace {

constexpr int GROUP = 8; // tiles of queries that go through the slots side by side

// One span in one layer, and how its work is cut: into tiles of MAX_ROWS queries of a kv head and parts of PART slots.
//
// What was generated comes by few tokens: they read keys as they stand, and are shared out over parts as well as
// heads. A prompt's keys are turned for all its queries at once, and its tiles go through the parts in groups, for
// which a part stays in the cache. Both depend on the span alone, so a sequence gets the same bits in any batch.
struct Work {
    const Span *span;
    const uint8_t *keys, *values; // (K, capacity, kv_bytes)
    size_t stride, turned_stride;  // bytes of one of them, and of the turned keys of a part
    int token;                     // the first one's place in the batch
    int S;                         // slots that are filled once it is written
    bool is_turned;
    int n_rows, n_tiles, n_groups, n_parts, n_splits;
    size_t results, turned; // where its own begin

    int group() const { return is_turned ? GROUP : 1; }
};

Work plan(const Span &span, int layer, int token, const Heads &heads) {
    Work work = {};
    work.span = &span, work.token = token;
    work.keys = span.rings[2 * layer], work.values = span.rings[2 * layer + 1];
    work.stride = kv_bytes(int(span.kv_type), heads.D), work.turned_stride = turned_bytes(int(span.kv_type), heads.D);
    work.S = int(std::min(span.first + span.n, span.capacity));
    work.is_turned = span.is_prompt || span.n > FEW_TOKENS;
    work.n_rows = int(span.n) * (heads.H / heads.K);
    work.n_tiles = (work.n_rows + MAX_ROWS - 1) / MAX_ROWS;
    work.n_groups = (work.n_tiles + work.group() - 1) / work.group();
    work.n_parts = (work.S + PART - 1) / PART;
    work.n_splits = work.is_turned ? 1 : work.n_parts;
    return work;
}

// Items of all works, counted through: finds the work of an item and the item's number within it.
class Items {
public:
    template <class Count> Items(const std::vector<Work> &works, Count count) {
        for (const Work &work : works) ends_.push_back(n() + count(work));
    }
    int n() const { return ends_.empty() ? 0 : ends_.back(); }
    size_t find(int &item) const {
        const size_t i = std::upper_bound(ends_.begin(), ends_.end(), item) - ends_.begin();
        item -= i ? ends_[i - 1] : 0;
        return i;
    }

private:
    std::vector<int> ends_;
};

// The same bits everywhere: scales are rounded first, then quants under them, to even. Where one of the numbers is not
// finite, none of the block is.
void round_to_q8(const uint16_t *x, int D, uint8_t *out) {
    constexpr float TO_EVEN = 12582912.0f; // 1.5 * 2^23: adding it leaves a whole number in the lowest bits
    for (int begin = 0, block = 0; begin < D; begin += BLOCK, block++) {
        const int end = std::min(D, begin + BLOCK);
        uint16_t top = 0;
        for (int d = begin; d < end; d++) top = std::max<uint16_t>(top, x[d] & 0x7fff);
        const uint16_t scale = top < 0x7f80 ? to_bf16(from_bf16(top) / 127.0f) : 0x7fc0;
        std::memcpy(out + D + 2 * block, &scale, 2);
        const bool is_zero = scale == 0 || scale == 0x7fc0;
        const float divisor = is_zero ? 1.0f : from_bf16(scale);
        for (int d = begin; d < end; d++) {
            const float quant = is_zero ? 0.0f : std::min(127.0f, std::max(-127.0f, from_bf16(x[d]) / divisor));
            out[d] = uint8_t(to_bits(quant + TO_EVEN) + KV_ZERO);
        }
    }
}

// The rows (n, K, D) of a span to their slots.
void write(const uint16_t *rows, const Span &span, const Heads &heads, uint8_t *ring) {
    const size_t stride = kv_bytes(int(span.kv_type), heads.D);
    for (int t = 0; t < span.n; t++)
        for (int head = 0; head < heads.K; head++) {
            const uint16_t *row = rows + (size_t(t) * heads.K + head) * heads.D;
            uint8_t *slot = ring + (size_t(head) * span.capacity + (span.first + t) % span.capacity) * stride;
            if (span.kv_type == KV_Q8_0) round_to_q8(row, heads.D, slot);
            else std::memcpy(slot, row, stride);
        }
}

// The slots that token `t` of a span sees. Once the span is written, slots [0, newest] hold the positions up to its
// last, and those behind the ones before: window 3, capacity 4, positions 5 and 6 written: slots hold 4 5 6 3, and the
// token at 5 sees 3 to 5, which is slots [0, 2) and [3, 4).
Visible visible(const Span &span, int t) {
    const int64_t position = span.first + t, last = span.first + span.n - 1, newest = last % span.capacity;
    const int64_t oldest = span.window ? std::max<int64_t>(0, position - span.window + 1) : 0;
    Visible slots = {};
    for (int i = 0; i < 2; i++) {
        const int64_t base = last - newest - i * span.capacity; // the position that slot 0 would hold
        const int64_t begin = i ? newest + 1 : 0, end = i ? span.capacity : newest + 1;
        if (i && last < span.capacity) break;
        slots.from[i] = int(std::max(begin, oldest - base));
        slots.to[i] = int(std::max<int64_t>(slots.from[i], std::min(end, position - base + 1)));
    }
    return slots;
}

// n items of D numbers, `stride` bytes from each other, with the items side by side: (D, PART).
template <class T> void turn(const uint8_t *items, size_t stride, int n, int D, T *turned) {
    for (int d = 0; d < D; d++)
        for (int s = 0; s < n; s++) std::memcpy(&turned[size_t(d) * PART + s], items + s * stride + d * sizeof(T), sizeof(T));
}

// The keys of one part of one head, of n slots, as turned_bytes says.
void turn_keys(int type, const uint8_t *keys, int n, int D, uint8_t *turned) {
    const size_t stride = kv_bytes(type, D);
    if (type == KV_BF16) return turn(keys, stride, n, D, reinterpret_cast<uint16_t *>(turned));
    turn(keys, stride, n, D, turned);
    for (int i = 0; i < D * PART; i++) turned[i] ^= KV_ZERO;
    float *scales = reinterpret_cast<float *>(turned + size_t(D) * PART);
    for (int s = 0; s < n; s++)
        for (int block = 0; block < kv_blocks(D); block++) {
            uint16_t scale;
            std::memcpy(&scale, keys + s * stride + D + 2 * block, 2);
            scales[block * PART + s] = from_bf16(scale);
        }
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

void attend(Array queries, const uint16_t *keys, const uint16_t *values, const Span *spans, int n_spans, int layer,
            Heads heads, Array out, int n_threads) {
    const int G = heads.H / heads.K, K = heads.K, D = heads.D;
    const size_t stride = MAX_ROWS * (D + 2); // the mixed values of the rows, then their tops and totals
    const float scale = 1.0f / std::sqrt(float(D));
    static std::vector<Work> works;
    static std::vector<float> results;
    static std::vector<uint8_t> turned;
    works.clear();
    int n_tokens = 0;
    size_t n_results = 0, n_turned = 0;
    for (const Span *span = spans; span < spans + n_spans; span++) {
        Work work = plan(*span, layer, n_tokens, heads);
        write(keys + size_t(n_tokens) * K * D, *span, heads, span->rings[2 * layer]);
        write(values + size_t(n_tokens) * K * D, *span, heads, span->rings[2 * layer + 1]);
        work.results = n_results, work.turned = n_turned;
        n_results += size_t(K) * work.n_tiles * work.n_splits * stride;
        n_turned += work.is_turned ? size_t(K) * work.n_parts * work.turned_stride : 0;
        n_tokens += int(span->n);
        works.push_back(work);
    }
    results.resize(n_results);
    turned.resize(n_turned);
    // Row r of a kv head is head r % G of token r / G.
    const auto row_at = [&](const Work &work, int k, int r) {
        return (size_t(work.token + r / G) * heads.H + size_t(k) * G + r % G) * D;
    };

    const Items to_turn(works, [&](const Work &work) { return work.is_turned ? K * work.n_parts : 0; });
    parallel(n_threads, to_turn.n(), [&](int item) {
        const Work &work = works[to_turn.find(item)];
        const int k = item / work.n_parts, begin = item % work.n_parts * PART;
        turn_keys(int(work.span->kv_type), work.keys + (size_t(k) * work.span->capacity + begin) * work.stride,
                  std::min(PART, work.S - begin), D, &turned[work.turned + item * work.turned_stride]);
    });

    const Items to_attend(works, [&](const Work &work) { return K * work.n_groups * work.n_splits; });
    parallel(n_threads, to_attend.n(), [&](int item) {
        static thread_local std::vector<float> rows;
        const Work &work = works[to_attend.find(item)];
        const int split = item % work.n_splits, k = item / work.n_splits / work.n_groups;
        const int first = item / work.n_splits % work.n_groups * work.group();
        const int n = std::min(work.group(), work.n_tiles - first), n_each = work.n_parts / work.n_splits;
        const size_t head = size_t(k) * work.span->capacity * work.stride;
        Attention tiles[GROUP] = {};
        rows.resize(size_t(n) * MAX_ROWS * D);
        for (int i = 0; i < n; i++) {
            Attention &tile = tiles[i];
            tile.rows = std::min(MAX_ROWS, work.n_rows - (first + i) * MAX_ROWS);
            float *row = &rows[size_t(i) * MAX_ROWS * D];
            tile.queries = row;
            for (int r = 0; r < tile.rows; r++, row += D) {
                const int of_head = (first + i) * MAX_ROWS + r;
                load_floats(queries, row_at(work, k, of_head), D, row);
                for (int d = 0; d < D; d++) row[d] *= scale;
                tile.visible[r] = visible(*work.span, of_head / G);
            }
            tile.kv_type = int(work.span->kv_type);
            tile.keys = work.keys + head, tile.values = work.values + head;
            tile.turned = work.is_turned ? &turned[work.turned + k * work.n_parts * work.turned_stride] : nullptr;
            tile.head_dim = D;
            tile.mixed = &results[work.results + ((size_t(k) * work.n_tiles + first + i) * work.n_splits + split) * stride];
            tile.top = tile.mixed + MAX_ROWS * D;
            tile.total = tile.top + MAX_ROWS;
        }
        for (int part = split * n_each; part < (split + 1) * n_each; part++)
            for (int i = 0; i < n; i++) {
                tiles[i].begin = part * PART, tiles[i].end = std::min(work.S, (part + 1) * PART);
                kernels().attend(tiles[i]);
                tiles[i].resumes = true;
            }
    });

    const Items to_merge(works, [&](const Work &work) { return K * work.n_tiles; });
    parallel(n_tokens > FEW_TOKENS ? n_threads : 1, to_merge.n(), [&](int item) {
        const Work &work = works[to_merge.find(item)];
        const int tile = item % work.n_tiles, k = item / work.n_tiles;
        const int n = std::min(MAX_ROWS, work.n_rows - tile * MAX_ROWS);
        for (int r = 0; r < n; r++)
            merge(&results[work.results + size_t(item) * work.n_splits * stride], work.n_splits, stride, D, r, out,
                  row_at(work, k, tile * MAX_ROWS + r));
    });
}

} // namespace m7b
