"""What hinders models on a machine, and the way out. Knows facts about it; measures nothing."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m7b.models.fit import Fit
    from m7b.runtime.machine import Machine


@dataclass(frozen=True, slots=True)
class Advice:
    """Something that makes models slow or impossible here, and the way out."""

    problem: str
    way_out: str


def advice_on(machine: "Machine", models: "Sequence[Fit]", environment: Mapping[str, str]) -> list[Advice]:
    """What to change on `machine`, the gravest first; nothing where all is well."""
    return [
        *_about_memory(machine, models),
        *_about_cpu(machine),
        *_about_kernels(machine, environment),
        *_about_threads(machine, environment),
        *_about_accelerators(machine),
    ]


def _about_memory(machine: "Machine", models: "Sequence[Fit]") -> Iterator[Advice]:
    large = [model for model in models if model.variants != ("demo",)]
    if all(model.ctx_size is None for model in large):
        least = min(large, key=lambda model: model.weight_bytes)
        yield Advice(
            f"{gib(machine.memory_free_bytes)} GiB of memory are free, and the smallest 7B takes "
            f"{gib(least.weight_bytes)} GiB before its cache",
            "close other programs, let --device auto keep weights on disk, or use the demo",
        )


def _about_cpu(machine: "Machine") -> Iterator[Advice]:
    is_x86 = platform.machine() in ("x86_64", "AMD64") and not machine.is_translated
    if is_x86 and "avx2" not in machine.cpu_features:
        yield Advice(
            "this CPU offers no AVX2, so matrices are multiplied several times slower",
            "in a virtual machine, hand the host's CPU through (QEMU: -cpu host)",
        )
    if (
        "avx512_bf16" in machine.cpu_features
        and "bitsandbytes" in machine.versions
        and "kernels" not in machine.versions
    ):
        yield Advice(
            "nf4 and fp4 run on the kernel that bitsandbytes brings, as the one that it would fetch from its "
            "hub for this CPU is not there",
            "pip install kernels",
        )


def _about_kernels(machine: "Machine", environment: Mapping[str, str]) -> Iterator[Advice]:
    from m7b.runtime.machine import better_kernels

    if machine.is_translated:
        yield Advice(
            "this Python is made for Intel's processors and translated: no kernels for this one run in it",
            "install Python for arm64, and m7b with it",
        )
    elif machine.kernels_missing:
        yield Advice(
            f"the native kernels are not in use ({machine.kernels_missing}), so q4_0 and q8_0 run on stock "
            "torch, several times slower",
            _to_get_kernels(environment),
        )
    elif better := better_kernels(machine):
        yield Advice(
            f"the native kernels run on {machine.kernels}; this CPU has what {better} needs, which is faster",
            _to_get_kernels(environment),
        )


def _to_get_kernels(environment: Mapping[str, str]) -> str:
    if environment.get("M7B_KERNELS"):
        return "unset M7B_KERNELS"
    if platform.system() == "Windows":
        return "there are none for Windows: run m7b in its Linux (wsl --install)"
    compiler = "run xcode-select --install" if platform.system() == "Darwin" else "install g++ 11 or later"
    return f"{compiler}, then: pip install --force-reinstall --no-deps --no-cache-dir m7b"


def _about_threads(machine: "Machine", environment: Mapping[str, str]) -> Iterator[Advice]:
    if environment.get("OMP_WAIT_POLICY", "").lower() == "active":
        yield Advice(
            "OMP_WAIT_POLICY is active: threads spin while they wait, and any other program slows decoding "
            "many times over",
            "unset OMP_WAIT_POLICY",
        )
    named = " ".join(name for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if environment.get(name))
    # Torch by itself may count slow cores too; loading a model sets it right.
    is_by_itself = not named and 0 < machine.threads - machine.cores <= machine.efficiency_cores
    if machine.threads != machine.cores and not is_by_itself:
        much = "more" if machine.threads > machine.cores else "fewer"
        yield Advice(
            f"torch computes with {format_count(machine.threads, 'thread')}, {much} than the "
            f"{format_count(machine.cores, 'core')} this process may use",
            f"unset {named}" if named else f"give --threads {machine.cores}",
        )


def _about_accelerators(machine: "Machine") -> Iterator[Advice]:
    if machine.accelerators:
        devices = ", ".join(card.device for card in machine.accelerators)
        yield Advice(
            f"no card has been tried with m7b, so on {devices} CUDA graphs, nf4, int8, the memory plan and "
            "speed are unproven",
            "compare an answer with that of --device cpu, or run tests/device/run.sh of the sources",
        )


def gib(n_bytes: int) -> str:
    """Bytes as people read them, in GiB."""
    return f"{n_bytes / (1 << 30):.1f}"


def format_count(n: int, noun: str) -> str:
    """`1 core`, `2 cores`."""
    return f"{n} {noun}{'' if n == 1 else 's'}"
