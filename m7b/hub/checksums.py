"""Checksums as they are published: sha256 of a file, md5 of a tar, git's of what is not in LFS."""

import hashlib
from collections.abc import Generator, Sequence
from pathlib import Path

from m7b.errors import DamagedCheckpoint
from m7b.hub.progress import Progress, within
from m7b.hub.shelf import File

_BLOCK = 1 << 22


def reading(path: Path, kind: str) -> Generator[int, None, str]:
    """The checksum of a file, `kind` and digits; tells the bytes read so far. `kind` is sha256, md5 or git.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha1(usedforsecurity=False) if kind == "git" else hashlib.new(kind)
    with path.open("rb") as file:
        if kind == "git":
            digest.update(b"blob %d\0" % path.stat().st_size)
        done = 0
        while block := file.read(_BLOCK):
            digest.update(block)
            done += len(block)
            yield done
    return f"{kind}:{digest.hexdigest()}"


def checking(path: Path, size: int, checksum: str) -> Generator[int, None, bool]:
    """Whether a file is there with this size and checksum; tells the bytes read so far."""
    try:
        if path.stat().st_size != size:
            return False
        found = yield from reading(path, checksum.partition(":")[0])
    except OSError:
        return False
    return found == checksum


def measured(folder: Path, names: Sequence[str]) -> Generator[Progress, None, tuple[File, ...]]:
    """Files of a folder with the checksums that they have now."""
    sizes = [(folder / name).stat().st_size for name in names]
    files, done = [], 0
    for name, size in zip(names, sizes, strict=True):
        checksum = yield from within(reading(folder / name, "sha256"), name, done, sum(sizes), "checking")
        files.append(File(name, size, checksum))
        done += size
    return tuple(files)


def all_measured(folder: Path) -> Generator[Progress, None, tuple[File, ...]]:
    """All files of a folder of ours, hidden ones apart."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return (yield from measured(folder, [path.relative_to(folder).as_posix() for path in paths]))


def mismatch(name: str, found: str, expected: str) -> DamagedCheckpoint:
    """The error where what was fetched is not what was announced."""
    return DamagedCheckpoint(
        f"{name} has {found.replace(':', ' ')} instead of {expected.replace(':', ' ')}",
        hint="it was removed: start the same command again, and if that does not help, the source is broken",
    )
