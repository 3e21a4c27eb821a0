"""Runs in the emulated Python: calls the kernels as it is told, over memory that it shares with the tests.

Takes the file of the shared memory and that of the kernels; then a line of JSON a call.
"""

import ctypes
import importlib.util
import json
import os
import sys

BEGIN, SIZE = 0x10000000000, 64 << 30  # as in arena.c
_READ_WRITE, _SHARED_FIXED = 1 | 2, 1 | 0x10


def main(arena: str, kernels: str) -> None:
    """Serves calls until there are no more."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    at = libc.mmap(BEGIN, SIZE, _READ_WRITE, _SHARED_FIXED, os.open(arena, os.O_RDWR), 0)
    if at != BEGIN:
        raise OSError(ctypes.get_errno(), "the shared memory cannot be mapped")
    found = importlib.util.spec_from_file_location("_native", kernels)
    native = importlib.util.module_from_spec(found)
    found.loader.exec_module(native)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        print(json.dumps(getattr(native, name)(*arguments)), flush=True)


main(*sys.argv[1:])
