"""The checkpoints on this machine: one record each, written when all files of the checkpoint are there.

A record is a small JSON file beside the folder that it describes. A folder without a record is not a
checkpoint, so an interrupted download is never loaded. Knows names, files and checksums; nothing about what
is inside.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from m7b.errors import OutOfResources
from m7b.hub import locks
from m7b.hub.progress import FileProgress
from m7b.paths import NoHome, checkpoints_folder

MADE = "quantize"
"""The `source` in the record of a file that `m7b quantize` made from a download."""

_RECORD_BYTES = 1 << 22  # a record is read whole; a checkpoint has a dozen files


@dataclass(frozen=True, slots=True)
class File:
    """One file of a checkpoint: its name in the folder, its bytes, and a checksum such as `sha256:ab12…`."""

    name: str
    size: int
    checksum: str


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """A whole checkpoint. `path` is what is loaded; `files` lie in `folder`.

    `format` is hf, native, gguf or, of an adapter, peft. `origin` is what `source` fetched: a hub id, an
    address or a path. `revision` is its commit, `requested` the branch, tag or commit that was asked for.
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
    requested: str = ""

    @property
    def n_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def is_revision(self, revision: str | None) -> bool:
        """Whether `revision` is what was asked for or the beginning of the commit; None is any."""
        if revision is None or revision == self.requested:
            return True
        return re.fullmatch("[0-9a-f]{7,40}", revision) is not None and self.revision.startswith(revision)

    @property
    def key(self) -> str:
        """The name of its folder, and of its own file without `.json`.

        Each of several GGUF files, which a repository holds or m7b has made, has a record.
        """
        if self.format != "gguf" or self.source not in ("hub", MADE):
            return make_key(self.name, self.format)
        file = Path(os.path.relpath(self.path, self.folder))
        if self.source == MADE:
            return make_key(self.name, self.format, file.stem)
        return make_key(self.name, self.format, hashlib.sha256(file.as_posix().encode()).hexdigest()[:8])


def make_key(name: str, format: str, file: str = "") -> str:
    """Make the name of the folder and the record of a checkpoint: `instruct-v0.3.hf`, `org--x@q4_0.gguf`.

    `file` tells one of several apart.
    """
    return f"{name.replace('/', '--')}{f'@{file}' if file else ''}.{format}"


def list_records() -> list[CheckpointRecord]:
    """List the checkpoints on this machine whose files exist, by name, the latest of a name first."""
    try:
        folder = checkpoints_folder()
        found = [_read_record(file) for file in folder.glob("*.json")] if folder.is_dir() else []
    except (NoHome, PermissionError):
        return []
    whole = [record for record in found if record and os.path.exists(record.path)]
    return sorted(whole, key=lambda record: (record.name, -record.fetched))


def list_names() -> list[str]:
    """List the names of the checkpoints on this machine."""
    return list(dict.fromkeys(record.name for record in list_records()))


def find_records(name: str, format: str | None = None) -> list[CheckpointRecord]:
    """Find the records of one name, the latest first."""
    return [record for record in list_records() if record.name == name and format in (None, record.format)]


def read_last_use(record: CheckpointRecord) -> float | None:
    """Read when the checkpoint was last loaded, None if never."""
    try:
        return _last_use_file(record).stat().st_mtime
    except OSError:
        return None


def mark_used(record: CheckpointRecord) -> None:
    """Note that the checkpoint is loaded now; where the folder cannot be written, do nothing."""
    with suppress(OSError):
        _last_use_file(record).touch()


def put(record: CheckpointRecord) -> None:
    """Write the record, whole or not at all.

    Raises:
        OutOfResources: the folder cannot be written.
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


def mark_verified(record: CheckpointRecord) -> CheckpointRecord:
    """Write that the files were found sound just now; returns the new record."""
    record = replace(record, verified=time.time())
    put(record)
    return record


def remove(record: CheckpointRecord) -> None:
    """Remove the record, then the folder if it is ours.

    Raises:
        OutOfResources: the system refuses.
    """
    folder = checkpoints_folder()
    try:
        (folder / f"{record.key}.json").unlink(missing_ok=True)
        _last_use_file(record).unlink(missing_ok=True)
        if record.is_ours and Path(record.folder).parent == folder:
            shutil.rmtree(record.folder, ignore_errors=False)
    except FileNotFoundError:
        pass  # it is gone already, as was asked for
    except OSError as error:
        raise OutOfResources(f"cannot remove {record.folder}: {error.strerror}") from None


def find_leftovers() -> list[Path]:
    """Find what downloads that never ended left behind, and folders without a record.

    Files that a running download uses are left out.
    """
    folder = checkpoints_folder()
    if not folder.is_dir():
        return []
    kept = {record.key for record in map(_read_record, folder.glob("*.json")) if record}
    unknown = [path for path in folder.iterdir() if path.is_dir() and path.name not in kept]
    unknown = [path for path in unknown if not locks.is_held(_lock_file(path.name.rsplit(".", 2)[0]))]
    return sorted([*unknown, *(path for path in folder.glob(".record-*") if not is_downloading())])


def is_downloading() -> bool:
    """Whether any download is running on this machine."""
    return any(map(locks.is_held, checkpoints_folder().glob(".*.lock")))


def lock(key: str) -> AbstractContextManager[Iterator[FileProgress]]:
    """Hold the lock of `key`, as `locks.hold` does."""
    return locks.hold(_lock_file(key), key)


def _lock_file(key: str) -> Path:
    return checkpoints_folder() / f".{key}.lock"


def _last_use_file(record: CheckpointRecord) -> Path:
    return checkpoints_folder() / f".{record.key}.used"


def _read_record(file: Path) -> CheckpointRecord | None:
    """Read a record, None where the file is none of ours."""
    try:
        if file.stat().st_size > _RECORD_BYTES:
            return None
        fields = json.loads(file.read_text("utf-8"))
        return CheckpointRecord(**{**fields, "files": tuple(File(**one) for one in fields["files"])})
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
