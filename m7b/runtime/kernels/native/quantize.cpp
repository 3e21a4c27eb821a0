// Rounding into GGUF's blocks: scales and minima that leave the least weighted squared error.
//
// With the quants held, the best scale and offset of a group are the solution of a least squares problem; with these held,
// the best quants are the nearest ones. Both by turns, from several starts, give the line of each group. The small scales
// and minima of a block of 256 are whole numbers times two that the block shares: these are chosen so that the groups'
// lines lie close to what they allow, then again both by turns, where each group may move to a neighbor of its numbers.
#include "operations.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "arrays.h"
#include "numbers.h"
#include "pool.h"

namespace m7b {
namespace {

constexpr int MAX_GROUPS = 16;

// Values that share the smallest scale, how much an error in each matters, and the sum of that.
struct Group {
    const float *x, *weights;
    int n;
    float total;
};

struct Fit {
    Line line;
    Sums sums;
    float error() const { return sums.rr; }
};

// What a type allows: quants, and small scales and minima.
struct Rules {
    Grid grid;
    bool has_minima, is_super; // minima of super-blocks are not above 0
    float small_low, small_high;
};

Rules rules_of(int type) {
    const Format &format = FORMATS[type];
    const float low = float(-format.offset), high = float((1 << format.bits) - 1 - format.offset);
    const Grid grid = format.has_levels ? Grid{float(IQ4_LEVELS[0]), float(IQ4_LEVELS[15]), true} : Grid{low, high, false};
    const int bits = type == Q6_K ? 8 : type == Q2_K ? 4 : 6; // of small scales
    const float half = float(1 << (bits - 1));
    return {grid, format.has_minima, format.smalls > 0, format.has_minima ? 0 : -half,
            format.has_minima ? 2 * half - 1 : half - 1};
}

float clamp(float x, float low, float high) { return std::max(low, std::min(high, x)); }
float round_f16(float x) { return from_f16(to_f16(x)); }

Fit measure(const Group &group, Line line, const Rules &rules) {
    Fit fit = {line, {}};
    kernels().measure_line(group.x, group.weights, group.n, line, rules.grid, &fit.sums);
    return fit;
}

// The line of least squares for the quants of a fit.
Line solve(const Fit &fit, float total, const Rules &rules) {
    const Sums &s = fit.sums;
    Line line = fit.line;
    if (!rules.has_minima) {
        if (s.qq > 0) line.scale += s.rq / s.qq;
        return line;
    }
    const float determinant = s.qq * total - s.q * s.q;
    if (determinant > 1e-6f * s.qq * total) {
        line.scale += (s.rq * total - s.r * s.q) / determinant;
        line.offset += (s.r * s.qq - s.rq * s.q) / determinant;
    }
    if (rules.is_super && line.offset > 0) {
        line = {fit.line.scale, 0};
        if (s.qq > 0) line.scale += (s.rq + fit.line.offset * s.q) / s.qq;
    }
    return line;
}

// What a solved line leaves before the values move to nearer quants.
float foretell_error(const Fit &fit, Line solved, float total) {
    const Sums &s = fit.sums;
    const float d = solved.scale - fit.line.scale, o = solved.offset - fit.line.offset;
    return s.rr - 2 * (d * s.rq + o * s.r) + d * d * s.qq + 2 * d * o * s.q + o * o * total;
}

// The two most promising of the lines that are tried.
struct Starts {
    Line lines[2] = {};
    float errors[2] = {INFINITY, INFINITY};

    void try_line(const Group &group, Line line, const Rules &rules) {
        const Fit fit = measure(group, line, rules);
        const Line solved = solve(fit, group.total, rules);
        const float error = foretell_error(fit, solved, group.total);
        const int at = error < errors[0] ? 0 : 1;
        if (!(error < errors[at])) return;
        if (at == 0) lines[1] = lines[0], errors[1] = errors[0];
        lines[at] = solved, errors[at] = error;
    }
};

// Lines that span the values, or somewhat more or less of them, at either end or both.
Starts find_starts(const Group &group, float low, float high, const Rules &rules) {
    constexpr float STEP = 0.04f;
    const Grid &grid = rules.grid;
    Starts starts;
    if (rules.has_minima) {
        for (int step = -3; step <= 5; step++)
            for (float part : {0.0f, 0.5f, 1.0f}) {
                const float scale = (high - low) / (grid.high * (1 + STEP * float(step)));
                starts.try_line(group, {scale, low + part * (high - low - scale * grid.high)}, rules);
            }
        return starts;
    }
    const float largest = high > -low ? high : low;
    for (float edge : {grid.low, grid.high})
        for (int step = -2; step <= 6; step++)
            starts.try_line(group, {largest / (edge * (1 + STEP * float(step))), 0}, rules);
    return starts;
}

// The best line for the values of a group, whatever its scale.
Fit fit_group(const Group &group, const Rules &rules) {
    float low = *std::min_element(group.x, group.x + group.n), high = *std::max_element(group.x, group.x + group.n);
    if (!rules.has_minima || rules.is_super) low = std::min(low, 0.0f), high = std::max(high, 0.0f);
    Fit best = measure(group, {0, rules.has_minima ? low : 0}, rules);
    if (high - low < SMALLEST) return best;
    for (Line line : find_starts(group, low, high, rules).lines) {
        float last = INFINITY;
        for (int turn = 0; turn < 4; turn++) {
            const Fit fit = measure(group, line, rules);
            if (fit.error() < best.error()) best = fit;
            if (!(fit.error() < last)) break;
            last = fit.error();
            line = solve(fit, group.total, rules);
        }
    }
    return best;
}

// Small scales and minima of the groups of a block, what they are multiplied by, and the fits that they leave.
struct Super {
    float scale, minimum;
    float scales[MAX_GROUPS], minima[MAX_GROUPS];
    Fit fits[MAX_GROUPS];
    float error;
};

// Whole numbers of a group near its own line, of which the neighbors are tried too.
void choose_smalls(const Group &group, const Fit &fit, const Rules &rules, Super &super, int g) {
    const float middle = super.scale != 0 ? std::round(fit.line.scale / super.scale) : 0;
    float least = INFINITY;
    for (int step = -1; step <= 1; step++) {
        const float small = clamp(middle + float(step), rules.small_low, rules.small_high);
        Line line = {small * super.scale, 0};
        float minimum = 0;
        if (rules.has_minima && super.minimum != 0) {
            const float guess = fit.line.offset + (fit.line.scale - line.scale) * fit.sums.q / group.total;
            line.offset = std::min(guess, 0.0f);
            const Sums sums = measure(group, line, rules).sums;
            minimum = clamp(std::round(-(line.offset + sums.r / group.total) / super.minimum), 0, rules.small_high);
            line.offset = -minimum * super.minimum;
        }
        const Fit found = measure(group, line, rules);
        if (found.error() >= least) continue;
        least = found.error();
        super.scales[g] = small, super.minima[g] = minimum, super.fits[g] = found;
    }
    super.error += least;
}

// The scale and the minimum of least squares for the quants and the whole numbers of all groups.
void solve_super(const Group *groups, int n, const Rules &rules, Super &super) {
    double ss = 0, sm = 0, mm = 0, rs = 0, rm = 0; // the minimum counts down
    for (int g = 0; g < n; g++) {
        const Sums &sums = super.fits[g].sums;
        const double s = super.scales[g], m = super.minima[g];
        ss += s * s * sums.qq, sm -= s * m * sums.q, mm += m * m * groups[g].total;
        rs += s * sums.rq, rm -= m * sums.r;
    }
    const double determinant = ss * mm - sm * sm;
    if (rules.has_minima && determinant > 1e-6 * ss * mm) {
        super.scale = round_f16(super.scale + float((rs * mm - rm * sm) / determinant));
        super.minimum = round_f16(super.minimum + float((rm * ss - rs * sm) / determinant));
    } else if (ss > 0) {
        super.scale = round_f16(super.scale + float(rs / ss));
    }
}

// The unit, of many, whose multiples lie closest to numbers that are at most `largest` units: curvature is what the square
// of a distance costs.
float choose_unit(const float *numbers, const float *curvatures, int n, float largest, float low, float high) {
    float best = 0, least = INFINITY;
    for (float edge : {high, low})
        for (int step = 0; step < 24 && edge != 0; step++) {
            const float unit = round_f16(largest / (edge * (1 - 0.01f * float(step))));
            if (unit == 0) continue;
            float cost = 0;
            for (int i = 0; i < n; i++) {
                const float missed = numbers[i] - unit * clamp(std::round(numbers[i] / unit), low, high);
                cost += curvatures[i] * missed * missed;
            }
            if (cost < least) least = cost, best = unit;
        }
    return best;
}

// From units for the groups' own fits, by turns to better ones.
void improve_super(const Group *groups, const Fit *fits, int n, const Rules &rules, float scale, float minimum, Super &best) {
    Super next = {};
    next.scale = scale, next.minimum = minimum;
    for (float last = INFINITY, turn = 0; turn < 4; turn++) {
        next.error = 0;
        for (int g = 0; g < n; g++) choose_smalls(groups[g], turn > 0 ? next.fits[g] : fits[g], rules, next, g);
        if (!(next.error < last)) break;
        last = next.error;
        if (next.error < best.error) best = next;
        solve_super(groups, n, rules, next);
    }
}

Super fit_block(const Group *groups, int n, const Rules &rules) {
    Fit fits[MAX_GROUPS];
    float scales[MAX_GROUPS], offsets[MAX_GROUPS], curvatures[MAX_GROUPS], totals[MAX_GROUPS];
    float largest = 0, lowest = 0;
    for (int g = 0; g < n; g++) {
        fits[g] = fit_group(groups[g], rules);
        const Fit &fit = fits[g];
        scales[g] = fit.line.scale, offsets[g] = -fit.line.offset, totals[g] = groups[g].total;
        curvatures[g] = fit.sums.qq;
        if (rules.has_minima && groups[g].total > 0) curvatures[g] -= fit.sums.q * fit.sums.q / groups[g].total;
        if (std::fabs(scales[g]) > std::fabs(largest)) largest = scales[g];
        lowest = std::max(lowest, offsets[g]);
    }
    Super best = {};
    best.error = INFINITY;
    const float close = choose_unit(scales, curvatures, n, largest, rules.small_low, rules.small_high);
    const float close_minimum = rules.has_minima ? choose_unit(offsets, totals, n, lowest, 0, rules.small_high) : 0;
    improve_super(groups, fits, n, rules, close, close_minimum, best);
    if (!rules.has_minima) return best;
    // Where few values are far from all others, units that just span them may be better.
    improve_super(groups, fits, n, rules, round_f16(largest / rules.small_high), round_f16(lowest / rules.small_high), best);
    return best;
}

uint8_t to_quant(float x, Line line, const Rules &rules) {
    const float ratio = std::fabs(line.scale) < SMALLEST ? 0 : (x - line.offset) * (1 / line.scale);
    if (!rules.grid.has_levels) return uint8_t(int(clamp(std::nearbyint(ratio), rules.grid.low, rules.grid.high) - rules.grid.low));
    int level = 0;
    while (level < 15 && ratio > 0.5f * float(IQ4_LEVELS[level] + IQ4_LEVELS[level + 1])) level++;
    return uint8_t(level);
}

// The best block for some values.
void fit_values(int type, const float *x, const float *weights, Block &block) {
    const Format &format = FORMATS[type];
    const Rules rules = rules_of(type);
    const int n = format.values / format.group;
    Group groups[MAX_GROUPS];
    for (int g = 0; g < n; g++) {
        groups[g] = {x + g * format.group, weights + g * format.group, format.group, 0};
        for (int i = 0; i < format.group; i++) groups[g].total += groups[g].weights[i];
    }
    Line lines[MAX_GROUPS];
    if (rules.is_super) {
        const Super super = fit_block(groups, n, rules);
        block.scales.scale = to_f16(super.scale), block.scales.minimum = to_f16(-super.minimum);
        for (int g = 0; g < n; g++) {
            lines[g] = super.fits[g].line;
            uint8_t *smalls = block.scales.smalls[g * format.group / BLOCK];
            const int scale = int(super.scales[g]), minimum = int(super.minima[g]);
            if (type == Q2_K) smalls[g % 2] = uint8_t(scale | minimum << 4);
            else if (format.group == 16) smalls[g % 2] = uint8_t(scale);
            else smalls[0] = uint8_t(scale), smalls[1] = uint8_t(minimum);
        }
    } else {
        const Line line = fit_group(groups[0], rules).line;
        block.scales.scale = to_f16(line.scale), block.scales.minimum = to_f16(line.offset);
        lines[0] = {from_f16(block.scales.scale), from_f16(block.scales.minimum)};
    }
    for (int i = 0; i < format.values; i++) block.quants[i] = to_quant(x[i], lines[i / format.group], rules);
}

void store_f16(float value, uint8_t *to) {
    uint16_t half = to_f16(value);
    std::memcpy(to, &half, 2);
}

void quantize_q4_0(const float *x, uint8_t *block) {
    float largest = 0;
    for (int i = 0; i < BLOCK; i++)
        if (std::fabs(x[i]) > std::fabs(largest)) largest = x[i];
    const float d = largest / -8, inverse = d != 0 ? 1 / d : 0;
    const auto rounded = [&](float value) { return std::max(0, std::min(15, int(value * inverse + 8.5f))); };
    store_f16(d, block);
    for (int i = 0; i < 16; i++) block[2 + i] = uint8_t(rounded(x[i]) | rounded(x[i + 16]) << 4);
}

void quantize_q4_1(const float *x, uint8_t *block) {
    float low = *std::min_element(x, x + BLOCK), high = *std::max_element(x, x + BLOCK);
    float d = (high - low) / 15, inverse = d != 0 ? 1 / d : 0;
    store_f16(d, block);
    store_f16(low, block + 2);
    for (int i = 0; i < 16; i++) {
        int a = std::min(15, int((x[i] - low) * inverse + 0.5f));
        int b = std::min(15, int((x[i + 16] - low) * inverse + 0.5f));
        block[4 + i] = uint8_t(a | b << 4);
    }
}

void quantize_q8_0(const float *x, uint8_t *block) {
    float largest = 0;
    for (int i = 0; i < BLOCK; i++) largest = std::max(largest, std::fabs(x[i]));
    float d = largest / 127, inverse = d != 0 ? 1 / d : 0;
    store_f16(d, block);
    for (int i = 0; i < BLOCK; i++) block[2 + i] = uint8_t(int8_t(std::round(x[i] * inverse)));
}

// The rounding that spans the values, of the types that have one; null for others.
auto spanning(int type) -> void (*)(const float *, uint8_t *) {
    switch (type) {
    case Q4_0: return quantize_q4_0;
    case Q4_1: return quantize_q4_1;
    case Q8_0:
    case INT8: return quantize_q8_0;
    default: return nullptr;
    }
}

} // namespace

void quantize(int type, Array x, int n_rows, int n_in, const float *importance, uint8_t *blocks, int n_threads) {
    const int values = FORMATS[type].values, bytes = FORMATS[type].bytes;
    const auto spans = FORMATS[type].bits == 8 || !importance ? spanning(type) : nullptr;
    const std::vector<float> ones(importance ? 0 : n_in, 1.0f);
    const float *weights = importance ? importance : ones.data();
    parallel(n_threads, n_rows, [&](int row) {
        static thread_local std::vector<float> all;
        all.resize(n_in);
        load_floats(x, size_t(row) * n_in, n_in, all.data());
        uint8_t *to = blocks + size_t(row) * (n_in / values) * bytes;
        Block block;
        for (int at = 0; at < n_in; at += values, to += bytes) {
            if (spans) {
                spans(&all[at], to);
                continue;
            }
            fit_values(type, &all[at], weights + at, block);
            put_together(type, block, to);
        }
    });
}

} // namespace m7b
