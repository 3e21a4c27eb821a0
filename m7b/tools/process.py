"""Start a worker process, send it requests, and stop it with all processes that it started.

Knows pipes, process groups and time; nothing about tools. What a worker writes comes from code that nobody
vouches for: this module limits its length, and the caller checks its content.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from m7b.tools.tool import find_last_line

_PIECE = 65_536  # bytes read at a time
_TAIL = 4_096  # bytes kept of what is printed


class WorkerLost(Exception):
    """The worker died, went silent or wrote nonsense, and has been stopped; `str(error)` says which."""


class Worker:
    """`python -m m7b.tools.worker FILE`, in a session of its own, so no terminal and no Ctrl+C reach it.

    It has the user's environment, working directory and rights. What it prints is read and dropped, except
    the last line.

    Raises:
        OSError: the system starts no further process.
    """

    def __init__(self, file: Path) -> None:
        theirs_requests, self._requests = os.pipe()
        self._replies, theirs_replies = os.pipe()
        self._output, theirs_output = os.pipe()
        self._tail = b""
        theirs = (theirs_requests, theirs_replies)
        # -P: a module of the user's working directory must not pass for one of Python's
        program = [sys.executable, "-P", "-u", "-m", "m7b.tools.worker"]
        try:
            self._process = subprocess.Popen(
                [*program, *map(str, theirs), str(file)],
                stdin=subprocess.DEVNULL,
                stdout=theirs_output,
                stderr=theirs_output,
                pass_fds=theirs,
                start_new_session=True,
            )
        except OSError:
            self._close()
            raise
        finally:
            for end in (*theirs, theirs_output):
                os.close(end)
        for end in (self._requests, self._replies, self._output):
            os.set_blocking(end, False)

    def ask(self, request: Any, *, seconds: float, longest: int) -> Any:
        """Send `request` and wait for the reply, both JSON; None waits for the reply that comes by itself.

        Raises:
            WorkerLost: no reply came within `seconds`, or it is no line of JSON of at most `longest` bytes.
        """
        unsent = b"" if request is None else json.dumps(request).encode() + b"\n"
        reply = self._exchange(unsent, time.monotonic() + seconds, longest)
        if reply is None:
            raise self.give_up(f"it took longer than {seconds:g} seconds and was stopped")
        if not reply.endswith(b"\n"):
            raise self.give_up("" if len(reply) <= longest else "its process wrote without end")
        try:
            return json.loads(reply)
        except (ValueError, RecursionError):
            raise self.give_up("its process wrote something that is no answer") from None

    def give_up(self, reason: str) -> WorkerLost:
        """Stop the worker and return the error to raise; an empty `reason` becomes how it ended."""
        self._drain()
        self.stop()
        printed = find_last_line(self._tail)
        return WorkerLost(
            (reason or self._describe_end()) + (f"; the last it printed: {printed}" if printed else "")
        )

    def stop(self) -> None:
        """Kill the process, its group, and descendants that have left the group; once."""
        import psutil

        if self._process.returncode is not None:
            return

        descendants: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            descendants = psutil.Process(self._process.pid).children(recursive=True)
        # nobody has waited for the process yet, so its number still belongs to it
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for descendant in descendants:
            with contextlib.suppress(psutil.Error):
                descendant.kill()
        self._process.wait()
        self._close()

    def _exchange(self, unsent: bytes, deadline: float, longest: int) -> bytes | None:
        """Send `unsent` while reading what the worker replies and prints; returns the reply.

        That is a line, or more than `longest` bytes, or all until the pipe closed; None after the deadline.
        """
        reply = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._replies, selectors.EVENT_READ)
            selector.register(self._output, selectors.EVENT_READ)
            if unsent:
                selector.register(self._requests, selectors.EVENT_WRITE)
            while (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    if key.fd == self._requests:
                        unsent = self._send(unsent)
                        if not unsent:
                            selector.unregister(key.fd)
                    elif key.fd == self._output:
                        if not self._read_output():
                            selector.unregister(key.fd)
                    else:
                        data = os.read(self._replies, _PIECE)
                        reply += data
                        if not data or data.endswith(b"\n") or len(reply) > longest:
                            return reply
        return None

    def _send(self, unsent: bytes) -> bytes:
        """Send a piece; returns what is left to send."""
        try:
            return unsent[os.write(self._requests, unsent) :]
        except BrokenPipeError:
            return b""  # the pipe of replies will show what happened

    def _read_output(self) -> bool:
        """Read a piece of what the worker printed; returns whether more may come."""
        data = os.read(self._output, _PIECE)
        self._tail = (self._tail + data)[-_TAIL:]
        return bool(data)

    def _drain(self) -> None:
        """Read what the worker has printed, at most what a pipe holds: it may print without end."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(16):
                if not self._read_output():
                    return

    def _describe_end(self) -> str:
        code = self._process.returncode
        if code >= 0:
            return f"its process ended with exit code {code}"
        if code == -signal.SIGKILL:
            return "its process closed its pipes or was killed"
        return f"its process died of {signal.Signals(-code).name}"

    def _close(self) -> None:
        for end in (self._requests, self._replies, self._output):
            os.close(end)
