#include "pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace m7b {
namespace {

constexpr auto PATIENCE = std::chrono::microseconds(100); // longer than Python takes between two kernels
constexpr int MAX_WORKERS = 255;
constexpr int MAX_ITEMS = (1 << 20) - 1;

void pause_briefly() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    std::this_thread::yield();
#endif
}

// Waits for a condition without giving the core away, for a short while; false if it did not come.
template <class Condition> bool spin_until(Condition is_met) {
    const auto end = std::chrono::steady_clock::now() + PATIENCE;
    for (;;) {
        for (int i = 0; i < 32; i++) {
            if (is_met()) return true;
            pause_briefly();
        }
        if (std::chrono::steady_clock::now() > end) return false;
    }
}

// `state` is the number of the job (24 bits), its items (20) and the next item (20). An item is taken by
// a compare-and-swap on all three, so a late worker can never take an item of a job that is over, and a
// job is over when all of its items are done, whether or not every worker has woken up.
class Pool {
public:
    void run(int n_threads, int n_items, Task task, void *context) {
        std::lock_guard<std::mutex> one_job(running_);
        grow(n_threads - 1 < MAX_WORKERS ? n_threads - 1 : MAX_WORKERS);
        limit_.store(n_threads - 1, std::memory_order_relaxed);
        task_.store(task, std::memory_order_relaxed);
        context_.store(context, std::memory_order_relaxed);
        done_.store(0, std::memory_order_relaxed);
        uint64_t job = (state_.load() >> 40) + 1;
        state_.store(job << 40 | uint64_t(n_items) << 20); // publishes all of the above
        if (sleeping_.load() > 0) {
            std::lock_guard<std::mutex> lock(sleep_);
            wake_.notify_all();
        }
        work(job & 0xffffff);
        auto is_done = [&] { return done_.load(std::memory_order_acquire) == n_items; };
        while (!spin_until(is_done)) std::this_thread::yield();
    }

private:
    void grow(int n_workers) {
        for (; n_workers_ < n_workers; n_workers_++)
            std::thread([this, id = n_workers_] { live(id); }).detach();
    }

    void live(int id) {
        uint64_t seen = 0;
        for (;;) {
            uint64_t job = wait_for_other(seen);
            if (id < limit_.load(std::memory_order_relaxed)) work(job);
            seen = job;
        }
    }

    uint64_t wait_for_other(uint64_t seen) {
        auto is_other = [&] { return state_.load() >> 40 != seen; };
        if (spin_until(is_other)) return state_.load() >> 40;
        std::unique_lock<std::mutex> lock(sleep_);
        sleeping_++;
        wake_.wait(lock, is_other);
        sleeping_--;
        return state_.load() >> 40;
    }

    void work(uint64_t job) {
        for (;;) {
            uint64_t state = state_.load(std::memory_order_acquire);
            uint64_t n_items = (state >> 20) & MAX_ITEMS, next = state & MAX_ITEMS;
            if (state >> 40 != job || next >= n_items) return;
            Task task = task_.load(std::memory_order_relaxed);
            void *context = context_.load(std::memory_order_relaxed);
            if (!state_.compare_exchange_weak(state, state + 1)) continue;
            task(context, int(next));
            done_.fetch_add(1, std::memory_order_release);
        }
    }

    std::mutex running_, sleep_;
    std::condition_variable wake_;
    std::atomic<uint64_t> state_{0};
    std::atomic<Task> task_{nullptr};
    std::atomic<void *> context_{nullptr};
    std::atomic<int> done_{0}, sleeping_{0}, limit_{0};
    int n_workers_ = 0;
};

Pool *pool = nullptr; // never destroyed: its threads outlive main

} // namespace

void run_items(int n_threads, int n_items, Task task, void *context) {
    if (n_threads <= 1 || n_items <= 1 || n_items > MAX_ITEMS) {
        for (int item = 0; item < n_items; item++) task(context, item);
        return;
    }
    static std::once_flag once;
    std::call_once(once, [] {
        pool = new Pool;
#if !defined(_WIN32)
        pthread_atfork(nullptr, nullptr, [] { pool = new Pool; }); // threads do not survive a fork
#endif
    });
    pool->run(n_threads, n_items, task, context);
}

} // namespace m7b
