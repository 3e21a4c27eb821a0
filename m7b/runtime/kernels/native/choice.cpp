#include "choice.h"

#include <cstring>
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace m7b {
namespace {

#if defined(__x86_64__)
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avx512vnni() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}
#endif

#if defined(M7B_HAS_AMX)
bool has_amx() {
    constexpr unsigned TILES = 1u << 24, INT8_TILES = 1u << 25;
    unsigned a, b, c, d;
    return has_avx512vnni() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & TILES) && (d & INT8_TILES) &&
           may_use_tiles();
}
#endif

#if defined(__aarch64__)
enum { DOTPROD = 1, I8MM = 2 };

// Of these, what the system says the processor has.
int arm_features() {
#if defined(__linux__)
    constexpr unsigned long HAS_DOTPROD = 1ul << 20, HAS_I8MM = 1ul << 13; // the second word's
    const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
    return (first & HAS_DOTPROD ? DOTPROD : 0) | (second & HAS_I8MM ? I8MM : 0);
#elif defined(__APPLE__)
    const auto has = [](const char *name) {
        int value = 0;
        size_t size = sizeof value;
        return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value;
    };
    return (has("hw.optional.arm.FEAT_DotProd") ? DOTPROD : 0) | (has("hw.optional.arm.FEAT_I8MM") ? I8MM : 0);
#else
    return 0;
#endif
}

template <int FEATURES> bool has_arm() { return (arm_features() & FEATURES) == FEATURES; }
#endif

struct Set {
    const Kernels &(*kernels)(); // to be called where it is there: it may use its instructions
    bool (*is_there)();
};

template <const Kernels &KERNELS> const Kernels &get() { return KERNELS; }
bool always() { return true; }

// The best first.
constexpr Set SETS[] = {
#if defined(M7B_HAS_AMX)
    {amx_kernels, has_amx},
#endif
#if defined(__x86_64__)
    {get<avx512vnni_kernels>, has_avx512vnni},
    {get<avx2_kernels>, has_avx2},
#endif
#if defined(M7B_HAS_I8MM)
    {get<i8mm_kernels>, has_arm<DOTPROD | I8MM>},
    {get<dotprod_kernels>, has_arm<DOTPROD>},
#endif
#if defined(__aarch64__)
    {get<neon_kernels>, always},
#endif
    {get<portable_kernels>, always},
};

const Kernels *chosen = nullptr;

const Kernels *best() {
    for (const Set &set : SETS)
        if (set.is_there()) return &set.kernels();
    return &portable_kernels;
}

} // namespace

const Kernels &kernels() {
    if (!chosen) chosen = best();
    return *chosen;
}

bool use(const char *name) {
    for (const Set &set : SETS)
        if (set.is_there() && !std::strcmp(name, set.kernels().name)) return chosen = &set.kernels(), true;
    return false;
}

} // namespace m7b
