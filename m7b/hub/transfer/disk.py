"""Write large files to a disk that may be full or lose its power. Knows nothing about what is in them."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from m7b.errors import OutOfResources

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def translate_disk_errors(to: Path, size: int = 0) -> Iterator[None]:
    """Turn errors of the disk in the block into ours; `to` will hold `size` bytes in all.

    Raises:
        OutOfResources: the disk is full or cannot be written; what is there already stays.
    """
    try:
        yield
    except OSError as error:
        why, hint = error.strerror or str(error), ""
        if error.errno in _FULL:
            why += f", {shutil.disk_usage(to.parent).free:,} bytes are free"
            hint = "make room and start the same command again: it goes on where it stopped"
        what = f"the {size:,} bytes of {to}" if size else str(to)
        raise OutOfResources(f"cannot write {what}: {why}", hint=hint) from None


def write_all(file: FileIO, data: bytes) -> None:
    """Write all of `data`; where the disk is full, the file then holds the part that fits."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def sync(path: Path) -> None:
    """Call fsync: a file, or the names in a folder, then survive a power cut."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # folders, on Windows
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
