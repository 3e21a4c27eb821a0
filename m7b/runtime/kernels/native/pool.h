// Threads that take items of work one by one. A thread that has lost its core holds up one item only.
#pragma once
#include <cstdint>

namespace m7b {

using Task = void (*)(void *context, int item);

// Calls task(context, i) for all i < n_items on up to `n_threads` threads, this one included.
void run_items(int n_threads, int n_items, Task task, void *context);

// The same for a callable.
template <class F> void parallel(int n_threads, int n_items, F &&f) {
    run_items(n_threads, n_items, [](void *context, int item) { (*static_cast<F *>(context))(item); }, &f);
}

} // namespace m7b
