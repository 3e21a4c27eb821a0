#include "updates.h"

#include <algorithm>
#include <vector>

#include "arrays.h"
#include "pool.h"

namespace m7b {
namespace {

constexpr int AT_ONCE = 4;   // tokens that a kernel for bfloat16 rows takes
constexpr int DEPTH = 2048;  // columns of `down` in one item: few rows are shared out by their columns
constexpr int OUTPUTS = 1024; // columns of `up` in one item

int parts(int n, int size) { return (n + size - 1) / size; }

} // namespace

void add_updates(const Addition *additions, int n_additions, Array x, int T, int n_in, int n_threads) {
    // Kept from call to call; one call runs at a time.
    static std::vector<const uint16_t *> groups; // of ROWS rows of `down`, those of all updates
    static std::vector<float> sums, low;
    static std::vector<int> ends; // one past the last item of each addition
    groups.clear(), ends.clear();
    for (int i = 0; i < n_additions; i++) {
        const Update &update = *additions[i].update;
        for (int row = 0; row < update.rank; row += ROWS) groups.push_back(update.down + size_t(row) * n_in);
        ends.push_back((i ? ends[i - 1] : 0) + (update.rank ? parts(additions[i].n_out, OUTPUTS) : 0));
    }
    if (groups.empty()) return;
    const int n_groups = int(groups.size()), n_depths = parts(n_in, DEPTH), n_tiles = parts(T, AT_ONCE);
    const size_t rank = size_t(n_groups) * ROWS;
    sums.resize(size_t(n_depths) * T * rank), low.resize(T * rank);
    parallel(n_threads, n_tiles * n_depths * n_groups, [&](int item) {
        const int group = item % n_groups, depth = item / n_groups % n_depths, t = item / n_groups / n_depths * AT_ONCE;
        const int n = std::min(AT_ONCE, T - t), first = depth * DEPTH, size = std::min(DEPTH, n_in - first);
        float values[AT_ONCE * DEPTH], out[AT_ONCE * ROWS];
        for (int i = 0; i < n; i++) load_floats(x, size_t(t + i) * n_in + first, size, values + size_t(i) * size);
        kernels().linear_bf16(groups[group] + first, n_in, size, values, n, out);
        for (int i = 0; i < n; i++)
            std::memcpy(&sums[(size_t(depth) * T + t + i) * rank + group * ROWS], out + i * ROWS, ROWS * sizeof(float));
    });
    // In the order of the columns, so that the sum is the same however many threads there are.
    for (size_t i = 0; i < T * rank; i++) {
        low[i] = 0;
        for (int depth = 0; depth < n_depths; depth++) low[i] += sums[size_t(depth) * T * rank + i];
    }
    size_t offset = 0;
    std::vector<size_t> offsets; // of each addition's numbers among those of a token
    for (int i = 0; i < n_additions; i++) {
        const Update &update = *additions[i].update;
        offsets.push_back(offset);
        for (int t = 0; t < T; t++)
            for (int r = 0; r < update.rank; r++) low[t * rank + offset + r] *= update.scales[r];
        offset += update.rank;
    }
    parallel(n_threads, n_tiles * ends.back(), [&](int item) {
        const int t = item / ends.back() * AT_ONCE, n = std::min(AT_ONCE, T - t), at = item % ends.back();
        const size_t i = std::upper_bound(ends.begin(), ends.end(), at) - ends.begin();
        const Update &update = *additions[i].update;
        const int n_out = additions[i].n_out;
        const int first = (at - (i ? ends[i - 1] : 0)) * OUTPUTS, size = std::min(OUTPUTS, n_out - first);
        float y[OUTPUTS];
        for (int k = t; k < t + n; k++) {
            const size_t to = size_t(k) * n_out + first;
            load_floats(additions[i].y, to, size, y);
            kernels().add_rows(update.up + first, n_out, int(update.rank), &low[k * rank + offsets[i]], size, y);
            store_floats(y, size, additions[i].y, to);
        }
    });
}

} // namespace m7b
