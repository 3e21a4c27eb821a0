"""Checksums as they are published: sha256 of a file, md5 of a tar, git's of what is not in LFS."""

import hashlib
from collections.abc import Generator, Sequence
from pathlib import Path

from m7b.errors import DamagedCheckpoint
from m7b.hub.progress import FileProgress, report_file
from m7b.hub.shelf import File

_BLOCK = 1 << 22


def compute_checksum(path: Path, kind: str) -> Generator[int, None, str]:
    """Read a file and return its checksum as `kind:digits`; yields the bytes read so far.

    `kind` is sha256, md5 or git.

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


def verify_file(path: Path, size: int, checksum: str) -> Generator[int, None, bool]:
    """Return whether a file exists with this size and checksum; yields the bytes read so far."""
    try:
        if path.stat().st_size != size:
            return False
        found = yield from compute_checksum(path, checksum.partition(":")[0])
    except OSError:
        return False
    return found == checksum


def checksum_files(folder: Path, names: Sequence[str]) -> Generator[FileProgress, None, tuple[File, ...]]:
    """Compute the checksums of the files `names` in a folder."""
    sizes = [(folder / name).stat().st_size for name in names]
    files, done = [], 0
    for name, size in zip(names, sizes, strict=True):
        checksum = yield from report_file(
            compute_checksum(folder / name, "sha256"), name, done, sum(sizes), "checking"
        )
        files.append(File(name, size, checksum))
        done += size
    return tuple(files)


def checksum_folder(folder: Path) -> Generator[FileProgress, None, tuple[File, ...]]:
    """Compute the checksums of all files below a folder, except hidden ones."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return (yield from checksum_files(folder, [path.relative_to(folder).as_posix() for path in paths]))


def make_mismatch_error(name: str, found: str, expected: str) -> DamagedCheckpoint:
    """Make the error that says that a fetched file has another checksum than was announced."""
    return DamagedCheckpoint(
        f"{name} has {found.replace(':', ' ')} instead of {expected.replace(':', ' ')}",
        hint="it was removed: start the same command again, and if that does not help, the source is broken",
    )
