"""The CPU as this process may use it: its name, the instructions that matter, and how many cores."""

import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import torch

from m7b.runtime import apple

_ROOT = Path("/")

# The names that Linux, macOS and torch's cpuinfo give to the instructions which the arithmetic can use.
_FEATURES = {
    "avx2": ("avx2", "avx2_0"),
    "fma": ("fma", "fma3"),
    "f16c": ("f16c",),
    "avx_vnni": ("avx_vnni",),
    "avx512f": ("avx512f", "avx512_f"),
    "avx512bw": ("avx512bw", "avx512_bw"),
    "avx512_vnni": ("avx512_vnni", "avx512vnni"),
    "avx512_bf16": ("avx512_bf16",),
    "avx512_fp16": ("avx512_fp16",),
    "amx_int8": ("amx_int8",),
    "amx_bf16": ("amx_bf16",),
    "neon": ("asimd", "neon", "AdvSIMD"),
    "dotprod": ("asimddp", "neon_dot", "dot", "FEAT_DotProd"),
    "i8mm": ("i8mm", "neon_i8mm", "FEAT_I8MM"),
    "bf16": ("bf16", "neon_bf16", "FEAT_BF16"),
    "sve": ("sve",),
    "sve2": ("sve2",),
}


def cpu_name(root: Path = _ROOT) -> str:
    """The model of the CPU as it calls itself, its architecture where it says nothing."""
    info = _cpu_info(root)
    named = (
        info.get("model name")
        or info.get("Model")
        or apple.read_facts(root).get("machdep.cpu.brand_string")
        or str(_capabilities().get("cpu_name", ""))
    )
    return " ".join((named or platform.processor() or platform.machine()).split())


def cpu_features(root: Path = _ROOT) -> tuple[str, ...]:
    """Those of the instruction sets that matter here which this CPU has, as Linux spells them."""
    info = _cpu_info(root)
    present = set((info.get("flags") or info.get("Features") or "").split())
    if not present:
        told = {name for name, has in _capabilities().items() if has is True}
        present = apple.list_features(apple.read_facts(root)) or told
    return tuple(name for name, spellings in _FEATURES.items() if present.intersection(spellings))


def logical_cores() -> int:
    """The logical cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def physical_cores(root: Path = _ROOT) -> int:
    """The cores that this process may keep busy: as many threads as are worth having, at least one.

    Of a machine with fast cores and slow ones only the fast count, as the others would hold them up.
    Counts the hyperthreads of a core once, and only cores of the process's affinity; a container's
    CPU quota limits it further, rounded down. 8 cores of 2 threads, affinity to CPUs 0 to 3, siblings
    adjacent: 2.
    """
    return max(1, int(min(_count_kinds(root)[0], cpu_quota(root))))


def is_translated(root: Path = _ROOT) -> bool:
    """Whether another processor than this program was made for is imitated, as Rosetta does it."""
    return apple.is_translated(apple.read_facts(root))


def efficiency_cores(root: Path = _ROOT) -> int:
    """The cores of this process that are left alone because the others are faster."""
    return _count_kinds(root)[1]


def cpu_quota(root: Path = _ROOT) -> float:
    """The CPUs' worth of time that control groups grant this process, infinite where nothing limits it."""
    granted = float("inf")
    for folder in _group_folders(root, "cpu"):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if not period:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():  # neither "max" nor -1
            granted = min(granted, int(quota) / max(1, int(period)))
    return granted


def memory_quota(root: Path = _ROOT) -> tuple[int, int] | None:
    """Bytes that control groups grant this process and those in use, None where nothing limits it."""
    limits = []
    for folder in _group_folders(root, "memory"):
        limit = _text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes")
        used = _text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes")
        if limit.isdigit() and used.isdigit():
            # What files occupy there is given back when a program wants it.
            cached = _inactive_file_bytes(_text(folder / "memory.stat"))
            limits.append((int(limit), max(0, int(used) - cached)))
    return min(limits, key=lambda pair: pair[0] - pair[1], default=None)


def _group_folders(root: Path, controller: str) -> Iterator[Path]:
    """The control groups of this process that limit `controller`, innermost first, in either version.

    A container sees its own group as the root, or the path of its host and nothing below it.
    """
    mounted = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = mounted / controller if controllers else mounted
        parts = Path(group.lstrip("/")).parts
        yield from (base.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))


def _inactive_file_bytes(stat: str) -> int:
    """From memory.stat; version 1 prefixes what counts a group and all below it with total_."""
    fields = dict(line.split(" ", 1) for line in stat.splitlines() if " " in line)
    return int(fields.get("total_inactive_file") or fields.get("inactive_file") or 0)


def _count_kinds(root: Path) -> tuple[int, int]:
    """The physical cores that the process may run on: the fast ones, and the others."""
    if not hasattr(os, "sched_getaffinity"):
        kinds = apple.count_cores(apple.read_facts(root))
        return kinds or (psutil.cpu_count(logical=False) or logical_cores(), 0)
    allowed = os.sched_getaffinity(0)
    fast = _fast_cpus(root, allowed)
    return _count_cores(root, fast), _count_cores(root, allowed - fast)


def _count_cores(root: Path, cpus: set[int]) -> int:
    """Hyperthreads of one core count once, where the system says which these are."""
    folder = root / "sys/devices/system/cpu"
    lists = [_text(folder / f"cpu{n}/topology/thread_siblings_list") for n in cpus]
    if all(lists):
        return len(set(lists))
    return min(len(cpus), psutil.cpu_count(logical=False) or len(cpus))


def _fast_cpus(root: Path, allowed: set[int]) -> set[int]:
    """Of these CPUs those of the fast cores: all of them, unless the system knows of two kinds.

    Intel's processors list their kinds. ARM's have a capacity each: fast is what has two thirds of the
    greatest, so that the one or two cores of the highest clock do not count alone.
    """
    if large := allowed & _cpu_list(_text(root / "sys/devices/cpu_core/cpus")):
        return large
    folder = root / "sys/devices/system/cpu"
    texts = {n: _text(folder / f"cpu{n}/cpu_capacity") for n in allowed}
    capacities = {n: int(text) for n, text in texts.items() if text.isdigit()}
    if len(capacities) < len(allowed):
        return allowed
    least = max(capacities.values()) * 2 / 3
    return {n for n, capacity in capacities.items() if capacity >= least}


def _cpu_list(text: str) -> set[int]:
    """`0-3,8` as Linux writes sets of CPUs: 0, 1, 2, 3 and 8; empty for what is none."""
    cpus: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and (last or first).isdigit():
            cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def _cpu_info(root: Path) -> dict[str, str]:
    """What Linux says of the first processor, empty elsewhere."""
    found: dict[str, str] = {}
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    return found


def _capabilities() -> Mapping[str, object]:
    """What torch's cpuinfo knows, empty where torch is too old to tell."""
    return getattr(torch.cpu, "get_capabilities", dict[str, object])()


def _text(file: Path) -> str:
    """The text of a file of the kernel's, empty where there is none."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
