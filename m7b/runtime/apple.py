"""What macOS says of the processor, by `sysctl`. Knows no other system."""

import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path

_NAMES = ("hw", "machdep.cpu", "sysctl.proc_translated")


@cache
def read_facts(root: Path) -> Mapping[str, str]:
    """All that sysctl says below these names, empty on other systems and where it cannot be asked."""
    if platform.system() != "Darwin":
        return {}
    try:
        command = [str(root / "usr/sbin/sysctl"), *_NAMES]
        # What it does not know, as Intel's Macs do not know translation, makes it fail behind all the rest.
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10)
    except (OSError, subprocess.SubprocessError):
        return {}
    pairs = (line.partition(":") for line in done.stdout.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


def list_features(facts: Mapping[str, str]) -> set[str]:
    """The instruction sets that are there, as Apple spells them: FEAT_DotProd, AdvSIMD, neon."""
    optional = {name: value for name, value in facts.items() if name.startswith("hw.optional.")}
    return {name.rpartition(".")[2] for name, value in optional.items() if value == "1"}


def count_cores(facts: Mapping[str, str]) -> tuple[int, int] | None:
    """The cores that are fast, and those made for efficiency; None where all are alike.

    Levels come fastest first. An M1 has Performance and Efficiency, an M5 Pro Super and Performance: of that
    one all are fast. Before levels had names, in macOS 12, whatever was not the first was for efficiency.
    """
    fast = slow = 0
    for level in range(_integer(facts.get("hw.nperflevels", "2"))):
        cores = _integer(facts.get(f"hw.perflevel{level}.physicalcpu", ""))
        name = facts.get(f"hw.perflevel{level}.name", "Efficiency" if level else "Performance")
        if name == "Efficiency":
            slow += cores
        else:
            fast += cores
    return (fast, slow) if fast else None


def is_translated(facts: Mapping[str, str]) -> bool:
    """Whether this is a program for Intel that Rosetta runs on Apple's processor."""
    return facts.get("sysctl.proc_translated") == "1"


def _integer(text: str) -> int:
    return int(text) if text.isdigit() else 0
