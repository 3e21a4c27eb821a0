"""Run programs that a model wrote, each in a process of its own with limits. Knows nothing about tasks.

The process has limits on time, memory and the size of files, an empty folder and environment, and, where the
system allows it, no network. That stops accidents; it is no prison for an attacker.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass

SECONDS = 10.0
MEMORY = 1 << 30

# Runs in the new process, which reads the program from stdin, and says the word once it has run to its end:
# one that leaves early has passed no test.
_RUNNER = """
import ctypes, os, resource, sys
seconds, memory, word = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
del sys.argv[1:]
try:
    ctypes.CDLL(None).unshare(0x10000000 | 0x40000000)
except Exception:
    pass
for limit, value in (("CPU", seconds), ("AS", memory), ("FSIZE", 1 << 20), ("CORE", 0), ("NOFILE", 64)):
    with_limit = getattr(resource, "RLIMIT_" + limit)
    resource.setrlimit(with_limit, (value, value))
program = sys.stdin.read()
answers = os.dup(1)
quiet = os.open(os.devnull, os.O_RDWR)
for end in (0, 1, 2):
    os.dup2(quiet, end)
exec(compile(program, "answer.py", "exec"), {"__name__": "__main__"})
os.write(answers, word.encode())
os._exit(0)
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a program ran to its end, and why not: `failed` or `too slow`, else empty."""

    passed: bool
    reason: str = ""


def run_program(source: str, *, seconds: float = SECONDS, memory: int = MEMORY) -> Verdict:
    """Run a Python program; it passes where it comes to its end without an error."""
    word = secrets.token_hex(16)
    command = [sys.executable, "-I", "-c", _RUNNER, str(int(seconds) + 1), str(memory), word]
    # Files, not pipes: a child that the program leaves behind would hold these open.
    with (
        tempfile.TemporaryDirectory(prefix="m7b-program-") as folder,
        tempfile.TemporaryFile() as asked,
        tempfile.TemporaryFile() as said,
    ):
        asked.write(source.encode("utf-8", "replace"))
        asked.seek(0)
        process = subprocess.Popen(
            command,
            stdin=asked,
            stdout=said,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PATH": os.defpath, "HOME": folder, "TMPDIR": folder},
            start_new_session=True,
        )
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return Verdict(False, "too slow")
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(0)
        is_passed = said.read(len(word) + 1) == word.encode()
    return Verdict(is_passed, "" if is_passed else "failed")
