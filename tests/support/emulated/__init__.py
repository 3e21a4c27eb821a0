"""A plugin of pytest by which the tests judge kernels of another architecture, under an emulator.

The tests run natively, and hand each call of `_native` to an emulated Python, which needs nothing but the
kernels. Both see the same memory. M7B_EMULATOR is the command that starts that Python, M7B_NATIVE the
kernels built for it, and M7B_EXPECTED the instruction set which they must choose; arena.c is preloaded.
"""

import json
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

from m7b.runtime import kernels

_one_call = Lock()


class EmulatedKernels:
    """The module `_native`, elsewhere."""

    def __init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        server = Path(__file__).with_name("server.py")
        self._process = subprocess.Popen(
            [
                *shlex.split(os.environ["M7B_EMULATOR"]),
                server,
                os.environ["M7B_ARENA"],
                os.environ["M7B_NATIVE"],
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with _one_call:
                self._process.stdin.write(json.dumps([name, arguments]) + "\n")
                self._process.stdin.flush()
                answer = self._process.stdout.readline()
            assert answer, f"the emulated kernels died in {name}{arguments}: {self._process.wait()}"
            return json.loads(answer)

        return call


kernels._native = EmulatedKernels()
found = kernels.instruction_set()
assert found == os.environ["M7B_EXPECTED"], f"the kernels chose {found}"
