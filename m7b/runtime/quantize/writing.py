"""What the writers share: a result that appears whole or not at all, and what is told of each tensor."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

ROWS = 1024
"""Rows of a weight that are turned back into numbers at a time."""


@dataclass(frozen=True, slots=True)
class Written:
    """One tensor is written, `done` of `total` bytes now. `error` is relative, of the root mean square."""

    name: str
    error: float
    done: int
    total: int


@contextmanager
def removed_on_failure(out: Path) -> Iterator[Path]:
    """Where to write what will be called `out`: renamed and flushed at the end, removed if there is none."""
    unfinished = out.with_name(f".{out.name}.unfinished")
    _remove(unfinished)
    try:
        yield unfinished
        files = sorted(unfinished.iterdir()) if unfinished.is_dir() else [unfinished]
        for path in [*files, *([unfinished] if unfinished.is_dir() else [])]:
            _flush(path)
        if out.is_dir() or unfinished.is_dir():
            _remove(out)  # a folder is not replaced by renaming
        unfinished.replace(out)
        _flush(out.absolute().parent)
    except BaseException:
        _remove(unfinished)
        raise


def relative_error(pieces: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The root mean square of what rounded numbers miss of a weight, by its own; a weight comes in pieces."""
    missed = size = 0.0
    for exact, found in pieces:
        wide = exact.to(torch.float32)
        missed += float((found.to(torch.float32) - wide).square().sum(dtype=torch.float64))
        size += float(wide.square().sum(dtype=torch.float64))
    return (missed / size) ** 0.5 if size else 0.0


def _flush(path: Path) -> None:
    """Wait until `path` is on the disk, where the system can tell."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # folders, on Windows
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
