// The instruction sets that are built in, and those that this processor has.
#pragma once
#include "kernels.h"

namespace m7b {

// The one in use: the best that this processor has, until `use` chooses another.
const Kernels &kernels();
bool use(const char *name); // false where this processor lacks it

} // namespace m7b
