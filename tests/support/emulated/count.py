"""Counts what the hot loops of the kernels take on ARM: instructions, and cycles as llvm-mca has them.

Takes a folder of neon*.o, and of repack.o and vec.o where llama.cpp's are to be counted too, and the command
of llvm-mca. What it prints is an estimate: all that is loaded is in the first level of the cache.
"""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PROCESSORS = ("neoverse-n1", "neoverse-v1", "neoverse-v2", "apple-m1")
MULTIPLICATIONS = re.compile(r"\b([su]dot|smmla|fmla|fmadd|smlal2?|bfdot|bfmmla)\b")
ROUNDS = 100


@dataclass(frozen=True, slots=True)
class Kernel:
    """A loop: one turn of it multiplies `n_units` times 32 weights of a row by a token.

    It is the shortest that multiplies most in a function, but for `rank` others; or the one around that,
    where `turns` says how often that one runs and how often those in it do.
    """

    label: str
    file: str
    function: str
    n_units: float
    turns: tuple[int, ...] = ()
    rank: int = 0


def ours(label: str, type: int, n_tokens: int) -> list[Kernel]:
    """64 rows times a token, or 8 times 16, of a type in the order of formats.h."""
    panels, n_units = (4, 64) if n_tokens == 1 else (1, 128)
    function = rf"void m7b::.*::multiply<{type}, {panels}, {n_tokens}, "
    return [
        Kernel(f"{label}, {level}", f"neon_{level}.o", function, n_units) for level in ("dotprod", "i8mm")
    ]


def theirs(label: str, function: str, n_units: int, turns: tuple[int, ...] = ()) -> list[Kernel]:
    """llama.cpp's by dot products, in words of 4 bytes, and those for i8mm, of 8."""
    return [
        Kernel(f"{label}, llama.cpp, {level}", "repack.o", f"{function.format(word)}$", n_units, turns)
        for level, word in (("dotprod", 4), ("i8mm", 8))
    ]


KERNELS = [
    *ours("Q4_0 decode", 0, 1),
    *theirs("Q4_0 decode", "ggml_gemv_q4_0_4x{}_q8_0", 4),
    *ours("Q8_0 decode", 2, 1),
    *ours("INT8 decode", 3, 1),
    *theirs("Q8_0 decode", "ggml_gemv_q8_0_4x{}_q8_0", 4),
    *ours("Q4_K decode", 8, 1),
    *theirs("Q4_K decode", "ggml_gemv_q4_K_8x{}_q8_K", 64, turns=(4, 2)),
    Kernel("bfloat16 decode, neon", "neon.o", "m7b::.*::linear_bf16", 1, rank=1),
    Kernel("bfloat16 decode, llama.cpp", "vec.o", "ggml_vec_dot_bf16$", 1 / 32),
    *ours("Q4_0 prefill", 0, 16),
    *theirs("Q4_0 prefill", "ggml_gemm_q4_0_4x{}_q8_0", 64),
    *ours("Q4_K prefill", 8, 16),
    *theirs("Q4_K prefill", "ggml_gemm_q4_K_8x{}_q8_K", 256, turns=(4, 2)),
    Kernel("bfloat16 prefill, neon", "neon.o", "m7b::.*::add_tile", 3),
]


def read_function(file: Path, function: str) -> list[tuple[int, str]]:
    """The address and the text of each instruction."""
    listing = subprocess.run(
        ["aarch64-linux-gnu-objdump", "-d", "-C", "--no-show-raw-insn", file],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name, body in re.findall(r"^\w+ <(.*)>:\n((?: .*\n)+)", listing, re.M):
        if re.search(function, name):
            lines = re.findall(r"^\s+(\w+):\t(.*?)(?:\s+//.*)?$", body, re.M)
            return [(int(at, 16), text.replace("\t", " ")) for at, text in lines]
    raise LookupError(f"{function} is not in {file}")


def find_loops(lines: list[tuple[int, str]]) -> list[range]:
    """Index ranges, the shortest first."""
    at = {address: i for i, (address, _) in enumerate(lines)}
    loops = []
    for i, (_, text) in enumerate(lines):
        jump = re.match(r"(?:b\.\w+|cbn?z|tbn?z) (?:.*, )?(\w+) <", text)
        to = at.get(int(jump[1], 16), i + 1) if jump else i + 1
        if to <= i:
            loops.append(range(to, i + 1))
    return sorted(loops, key=len)


def read_turn(kernel: Kernel, folder: Path) -> list[str]:
    """The instructions of one turn of the loop."""
    lines = read_function(folder / kernel.file, kernel.function)
    texts = [text for _, text in lines]
    loops = find_loops(lines)
    hottest: list[range] = []
    for loop in sorted(loops, key=lambda loop: -sum(bool(MULTIPLICATIONS.search(texts[i])) for i in loop)):
        if not any(is_within(other, loop) or is_within(loop, other) for other in hottest):
            hottest.append(loop)
    hot = hottest[kernel.rank]
    if not kernel.turns:
        return [texts[i] for i in hot]
    outer = next(loop for loop in loops if loop != hot and is_within(hot, loop))
    return expand(outer, hot, loops, texts, kernel.turns)


def expand(
    loop: range, inner: range, loops: list[range], texts: list[str], turns: tuple[int, ...]
) -> list[str]:
    """A loop, in which `inner` runs as often as the first of `turns` says, and loops in that by the next."""
    body = texts[inner.start : inner.stop]
    within = [other for other in loops if other != inner and is_within(other, inner)]
    if within and turns[1:]:
        body = expand(inner, within[-1], loops, texts, turns[1:])
    return texts[loop.start : inner.start] + turns[0] * body + texts[inner.stop : loop.stop]


def is_within(inner: range, outer: range) -> bool:
    """Whether all of a loop is in another."""
    return outer.start <= inner.start and inner.stop <= outer.stop


def estimate_cycles(turn: list[str], mca: str, processor: str) -> float:
    """Cycles of a turn among many, without what only says where to go on."""
    code = "\n".join(text for text in turn if "<" not in text)
    told = subprocess.run(
        [
            mca,
            "-mtriple=aarch64",
            f"-mcpu={processor}",
            "-mattr=+dotprod,+i8mm,+bf16",
            f"-iterations={ROUNDS}",
        ],
        input=code,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return int(re.search(r"Total Cycles:\s+(\d+)", told)[1]) / ROUNDS


def main(folder: str, mca: str) -> None:
    """Prints a row of Markdown for each kernel that is there."""
    print("| Loop | instructions |", " | ".join(PROCESSORS), "|")
    print("|---|" + "---|" * (1 + len(PROCESSORS)))
    for kernel in KERNELS:
        if (Path(folder) / kernel.file).exists():
            turn = read_turn(kernel, Path(folder))
            cycles = [estimate_cycles(turn, mca, processor) / kernel.n_units for processor in PROCESSORS]
            print(
                f"| {kernel.label} | {len(turn) / kernel.n_units:.2f} |",
                " | ".join(f"{c:.2f}" for c in cycles),
                "|",
            )


main(*sys.argv[1:])
