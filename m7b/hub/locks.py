"""Locks between processes, as files. Whoever waits for one tells so."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from m7b.errors import OutOfResources
from m7b.hub.progress import FileProgress

if TYPE_CHECKING:
    from filelock import BaseFileLock

_SHARED_MODE = 0o664  # several users may share a cache


@contextmanager
def hold(path: Path, what: str) -> Iterator[Iterator[FileProgress]]:
    """Hold the lock `path` from the end of the iterator that this gives until the block ends.

    The iterator waits for the lock; it yields progress of `what` that says so.

    Raises:
        OutOfResources: its folder cannot be written.
    """
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutOfResources(f"cannot write to {path.parent}: {error.strerror}") from None
    lock = FileLock(path, mode=_SHARED_MODE)
    try:
        yield _wait(lock, what)
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Whether a process holds the lock `path`."""
    from filelock import FileLock, Timeout

    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0, mode=_SHARED_MODE):
            return False
    except Timeout:
        return True


def _wait(lock: "BaseFileLock", what: str) -> Iterator[FileProgress]:
    from filelock import Timeout

    while True:
        try:
            lock.acquire(timeout=0.25)
            return
        except Timeout:
            yield FileProgress(what, 0, 0, "another program is fetching it: waiting")
