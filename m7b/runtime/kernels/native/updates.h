// What adapters add to linears, for some of a batch's tokens.
#pragma once
#include "operations.h"

namespace m7b {

// y (T, n_out) += what down (rank, n_in) makes of x (T, n_in), times scales (rank,), times up (rank, n_out). Rank 0 adds
// nothing; any other is a multiple of ROWS. Four numbers of 64 bits, as Python writes them.
struct Update {
    const uint16_t *down, *up; // bfloat16
    const float *scales;
    int64_t rank;
};
// An update, and what it adds to.
struct Addition {
    const Update *update;
    int n_out;
    Array y;
};

// Several updates of one x. A token gets the same bits whatever is beside it.
void add_updates(const Addition *additions, int n_additions, Array x, int T, int n_in, int n_threads);

} // namespace m7b
