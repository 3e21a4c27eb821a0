"""The machine under the model: what it is, and how fast it reads memory. Knows no model."""

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil
import torch

from m7b.runtime import kernels
from m7b.runtime.processor import (
    cpu_features,
    cpu_name,
    efficiency_cores,
    is_translated,
    logical_cores,
    memory_quota,
    physical_cores,
)

__all__ = [
    "Accelerator",
    "Machine",
    "as_json",
    "better_kernels",
    "copy_bandwidth",
    "describe_machine",
    "free_memory",
    "multiply_rate",
    "physical_cores",
    "read_bandwidth",
    "synchronize",
]

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "bitsandbytes",
    "kernels",
    "safetensors",
    "tokenizers",
    "mistral-common",
    "gguf",
    "llguidance",
    "llama-cpp-python",
)
"""The libraries whose versions change what m7b does or how fast."""

_NEEDED = {
    "amx": ("amx_int8", "avx512_vnni", "avx2"),
    "avx512vnni": ("avx512_vnni", "avx512f", "avx512bw", "avx2", "fma", "f16c"),
    "avx2": ("avx2", "fma", "f16c"),
    "i8mm": ("i8mm", "dotprod"),
    "dotprod": ("dotprod",),
    "neon": ("neon",),
    "portable": (),
}
"""By the kernels' instruction sets, the features of a CPU that they need."""

_PROBE_BYTES = 512 << 20
_LEAST_PROBE_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One GPU or the like, by the name that `--device` takes."""

    device: str
    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides how fast a model runs here.

    `cores` are physical ones that this process may use and that are fast, `efficiency_cores` the others;
    `logical_cores` count all, and hyperthreads too. `is_translated`: the program is made for another CPU.
    `memory_bytes` and `memory_free_bytes` heed the limit of a container. `versions` has the libraries
    that are installed. `kernels` is the instruction set of the native kernels, "none" where they are
    not built, and `kernels_missing` says why they are not. `threads` is how many torch computes with.
    """

    cpu: str
    cores: int
    efficiency_cores: int
    logical_cores: int
    cpu_features: tuple[str, ...]
    is_translated: bool
    memory_bytes: int
    memory_free_bytes: int
    accelerators: tuple[Accelerator, ...]
    python: str
    os: str
    versions: dict[str, str]
    kernels: str
    kernels_missing: str
    threads: int


def describe_machine() -> Machine:
    """The machine as it is now."""
    total = psutil.virtual_memory().total
    quota, instructions = memory_quota(), kernels.instruction_set()
    return Machine(
        cpu=cpu_name(),
        cores=physical_cores(),
        efficiency_cores=efficiency_cores(),
        logical_cores=logical_cores(),
        cpu_features=cpu_features(),
        is_translated=is_translated(),
        memory_bytes=min(total, quota[0]) if quota else total,
        memory_free_bytes=free_memory(),
        accelerators=_accelerators(),
        python=platform.python_version(),
        os=platform.platform(),
        versions=_versions(),
        kernels=instructions or "none",
        kernels_missing="" if instructions else kernels.why_missing(),
        threads=torch.get_num_threads(),
    )


def as_json(machine: Machine) -> dict[str, Any]:
    """The machine as JSON tells it: the fields by their names, tuples as lists."""
    report = asdict(machine)
    return report | {key: list(value) for key, value in report.items() if isinstance(value, tuple)}


def better_kernels(machine: Machine) -> str | None:
    """The best of the kernels' instruction sets that this CPU could run, None where that is in use."""
    order = kernels.INSTRUCTION_SETS
    best = next(name for name in order if set(_NEEDED[name]).issubset(machine.cpu_features))
    in_use = order.index(machine.kernels) if machine.kernels in order else len(order)
    return best if order.index(best) < in_use else None


def free_memory() -> int:
    """Bytes of memory that this process can still take, within the limit of a container."""
    available = psutil.virtual_memory().available
    quota = memory_quota()
    return min(available, max(0, quota[0] - quota[1])) if quota else available


def read_bandwidth(threads: int | None = None, seconds: float = 0.5) -> float:
    """GB/s (1e9 bytes) that this process reads from memory with `threads` threads, None for torch's number.

    The best pass over a buffer of 512 MiB, or a quarter of the free memory if that is less, in
    `seconds` of passes and at least three. The native kernels read it where they are built. Otherwise it
    is summed as int64 by torch, which is bound by memory and within the noise of a plain AVX2 loop;
    reductions in 8 bits, dot products and matrix-vector products of torch are slower than memory.

    Other programs take their share: the figure is what is left for this one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        n_bytes = max(_LEAST_PROBE_BYTES, min(_PROBE_BYTES, free_memory() // 4)) & -4096
        # Written, not zeroed: pages that nobody wrote are all the same page, and that one is in the cache.
        buffer = kernels.empty_bytes(n_bytes).fill_(1)
        best = _time_best(lambda: _read(buffer), "cpu", seconds)
    finally:
        torch.set_num_threads(before)
    return n_bytes / best / 1e9


def copy_bandwidth(device: str, seconds: float = 0.5) -> float:
    """GB/s (1e9 bytes) that `device` reads and writes to copy its own memory: the best of some passes."""
    source = torch.ones(_PROBE_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * _PROBE_BYTES / _time_best(lambda: target.copy_(source), device, seconds) / 1e9


def multiply_rate(device: str, dtype: torch.dtype, side: int = 8192, seconds: float = 0.5) -> float:
    """TFLOP/s (1e12) at which `device` multiplies square matrices of `dtype`: the best of some passes."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _time_best(lambda: left @ right, device, seconds) / 1e12


def synchronize(device: str) -> None:
    """Wait until `device` has done what it was asked for."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)


def _time_best(run: Callable[[], object], device: str, seconds: float) -> float:
    """The seconds of the fastest of at least three runs, in so many seconds of them."""
    best, n_passes, until = float("inf"), 0, time.perf_counter() + seconds
    while n_passes < 3 or time.perf_counter() < until:
        synchronize(device)
        started = time.perf_counter()
        run()
        synchronize(device)
        best, n_passes = min(best, time.perf_counter() - started), n_passes + 1
    return best


def _read(buffer: torch.Tensor) -> None:
    if kernels.instruction_set():
        kernels.read_sum(buffer)
    else:
        buffer.view(torch.int64).sum()


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _accelerators() -> tuple[Accelerator, ...]:
    """Every GPU that torch can compute on; AMD's answer to the name of cuda."""
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
        return tuple(Accelerator(f"cuda:{n}", card.name, card.total_memory) for n, card in enumerate(cards))
    if torch.backends.mps.is_available():
        return (Accelerator("mps", cpu_name(), torch.mps.recommended_max_memory()),)
    return ()
