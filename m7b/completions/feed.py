"""The lines of a file or a pipe, for a reader who has other work while none comes. Knows no JSON."""

import os
import select
import sys
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO

_PIECE = 1 << 16


class LineFeed:
    """Lines that are not blank, one after another.

    Args:
        stream: a file, or stdin, of which nothing was read yet. A pipe that gives nothing holds up nobody
            who does not want to wait (but on Windows, whose pipes cannot be asked).

    Attributes:
        is_over: whether there are no more.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._descriptor = None if sys.platform == "win32" else _find_descriptor(stream)
        self._whole: deque[bytes] = deque()  # lines that were read and not taken
        self._part = b""  # the beginning of the next
        self.is_over = False

    def __iter__(self) -> Iterator[bytes]:
        while (line := self.take(waits=True)) is not None:
            yield line

    def take(self, *, waits: bool) -> bytes | None:
        """The next line; None where there is none, and where none has come yet unless it `waits`."""
        while True:
            while self._whole:
                if (line := self._whole.popleft()).strip():
                    return line
            if self.is_over or not self._read(waits=waits):
                return None

    def _read(self, *, waits: bool) -> bool:
        """Read more; False where nothing has come."""
        if self._descriptor is None:
            line = self._stream.readline()
            self._whole.append(line)
            self.is_over = not line
            return True
        ready, _, _ = select.select([self._descriptor], [], [], None if waits else 0)
        if not ready:
            return False
        piece = os.read(self._descriptor, _PIECE)
        *lines, self._part = (self._part + piece).split(b"\n")
        self._whole += lines
        if not piece:
            self._whole.append(self._part)
            self.is_over = True
        return True


def _find_descriptor(stream: BinaryIO) -> int | None:
    try:
        return stream.fileno()
    except OSError:  # memory, no file of the system's
        return None
