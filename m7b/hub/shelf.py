"""Which checkpoints are on this machine: one record each, written when everything else is there.

A record is a small JSON file beside the folder it tells of. What has no record is not a checkpoint, so a
download that was cut off is never loaded. Knows names, files and checksums; nothing about what is inside.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from m7b.errors import OutOfResources, UsageError
from m7b.hub.progress import Progress
from m7b.paths import checkpoints_folder

_RECORD_BYTES = 1 << 22  # a record is read whole; a checkpoint has a dozen files


@dataclass(frozen=True, slots=True)
class File:
    """One file of a checkpoint: its name in the folder, its bytes, and a checksum such as `sha256:ab12…`."""

    name: str
    size: int
    checksum: str


@dataclass(frozen=True, slots=True)
class Record:
    """A whole checkpoint. `path` is what is loaded; `files` lie in `folder`.

    `format` is hf, native or gguf. `origin` is what `source` fetched: a hub id, an address or a path.
    `is_ours` says that the folder goes with the record; a folder that others share, or that the user
    brought, stays. Times are seconds since 1970.
    """

    name: str
    format: str
    source: str
    origin: str
    revision: str
    path: str
    folder: str
    files: tuple[File, ...]
    is_ours: bool
    fetched: float
    verified: float

    @property
    def n_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def key(self) -> str:
        """What its file and its folder are called."""
        return key_of(self.name, self.format)


def key_of(name: str, format: str) -> str:
    """What the file and the folder of a checkpoint are called: `instruct-v0.3.hf`, `org--name.gguf`."""
    return f"{name.replace('/', '--')}.{format}"


def records() -> list[Record]:
    """What is on this machine, by name, the latest first; nothing whose files are gone."""
    folder = checkpoints_folder()
    found = [_read(file) for file in folder.glob("*.json")] if folder.is_dir() else []
    whole = [record for record in found if record and Path(record.path).exists()]
    return sorted(whole, key=lambda record: (record.name, -record.fetched))


def named(name: str, format: str | None = None) -> list[Record]:
    """The records of one name, the latest first."""
    return [record for record in records() if record.name == name and format in (None, record.format)]


def one_named(name: str, format: str | None = None) -> list[Record]:
    """The records of `name`, at least one.

    Raises:
        UsageError: there is none; the hint says which there are.
    """
    found = named(name, format)
    if not found:
        known = ", ".join(dict.fromkeys(record.name for record in records()))
        raise UsageError(
            f"{name} is not on this machine" + (f" as {format}" if format else ""),
            hint=f"there are {known}" if known else "nothing was downloaded yet: see m7b download --help",
        )
    return found


def last_used(record: Record) -> float | None:
    """When it was last loaded, None if never."""
    try:
        return _mark(record).stat().st_mtime
    except OSError:
        return None


def used(record: Record) -> None:
    """Remember that it is loaded now; a folder that cannot be written forgets it."""
    with suppress(OSError):
        _mark(record).touch()


def put(record: Record) -> None:
    """Write the record, whole or not at all.

    Raises:
        OutOfResources: it cannot be written.
    """
    folder = checkpoints_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / f".record-{os.getpid()}"
        with new.open("w", encoding="utf-8") as file:
            json.dump(asdict(record), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, folder / f"{record.key}.json")
    except OSError as error:
        raise OutOfResources(f"cannot write to {folder}: {error.strerror}") from None


def verified(record: Record) -> Record:
    """The record, its files found sound just now."""
    record = replace(record, verified=time.time())
    put(record)
    return record


def remove(record: Record) -> None:
    """Take the record away, then the folder if it is ours."""
    folder = checkpoints_folder()
    try:
        (folder / f"{record.key}.json").unlink(missing_ok=True)
        _mark(record).unlink(missing_ok=True)
        if record.is_ours and Path(record.folder).parent == folder:
            shutil.rmtree(record.folder, ignore_errors=False)
    except FileNotFoundError:
        pass  # it is gone, which was the wish
    except OSError as error:
        raise OutOfResources(f"cannot remove {record.folder}: {error.strerror}") from None


def leftovers() -> list[Path]:
    """What downloads left that never ended, and what the record is gone of; nothing that is at work."""
    folder = checkpoints_folder()
    if not folder.is_dir():
        return []
    kept = {record.key for record in map(_read, folder.glob("*.json")) if record}
    unknown = [path for path in folder.iterdir() if path.is_dir() and path.name not in kept]
    unknown = [path for path in unknown if not _is_locked(path.name.rsplit(".", 2)[0])]
    return sorted([*unknown, *(path for path in folder.glob(".record-*") if not anyone_at_work())])


def anyone_at_work() -> bool:
    """Whether a download is going on."""
    return any(
        _is_locked(path.name[1:].removesuffix(".lock")) for path in checkpoints_folder().glob(".*.lock")
    )


@contextmanager
def locked(key: str) -> Iterator[Iterator[Progress]]:
    """Nobody else works on `key` inside. The iterator that is given waits for that, and tells so."""
    from filelock import FileLock

    folder = checkpoints_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutOfResources(f"cannot write to {folder}: {error.strerror}") from None
    lock = FileLock(folder / f".{key}.lock")
    try:
        yield _waiting(lock, key)
    finally:
        lock.release()


def _is_locked(key: str) -> bool:
    """Whether somebody works on `key`."""
    from filelock import FileLock, Timeout

    path = checkpoints_folder() / f".{key}.lock"
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def _waiting(lock: Any, key: str) -> Iterator[Progress]:
    from filelock import Timeout

    while True:
        try:
            lock.acquire(timeout=0.25)
            return
        except Timeout:
            yield Progress(key, 0, 0, "another m7b is fetching it: waiting")


def _mark(record: Record) -> Path:
    return checkpoints_folder() / f".{record.key}.used"


def _read(file: Path) -> Record | None:
    """The record in a file, None where it is none of ours."""
    try:
        if file.stat().st_size > _RECORD_BYTES:
            return None
        fields = json.loads(file.read_text("utf-8"))
        return Record(**{**fields, "files": tuple(File(**one) for one in fields["files"])})
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
