"""Remove checkpoints, and what downloads left behind. A `Removal` says first what it would free."""

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from m7b.errors import OutOfResources
from m7b.hub import locks, shelf
from m7b.hub.shelf import CheckpointRecord
from m7b.hub.sources.huggingface import PART_SUFFIX, cache_folder, lock_file
from m7b.network import check_endpoint


@dataclass(frozen=True, slots=True)
class Removal:
    """Something to remove: `text` names it in one line, `n_bytes` would be free afterwards."""

    text: str
    n_bytes: int
    action: Callable[[], None]

    def execute(self) -> None:
        """Remove it.

        Raises:
            OutOfResources: the system refuses.
        """
        try:
            self.action()
        except FileNotFoundError:
            pass  # it is gone already, as was asked for
        except OSError as error:
            raise OutOfResources(f"cannot remove {error.filename}: {error.strerror}") from None


def plan_removal(record: CheckpointRecord) -> Removal:
    """Plan the removal of a checkpoint.

    A folder of ours goes with its record; from the hub's cache goes what only this checkpoint uses; of files
    that belong to the user, only the record goes.
    """
    what = f"{record.name} ({record.format})"
    if record.is_ours:
        text = f"{what}: {record.n_bytes / 1e6:,.1f} MB in {record.folder}"
        return Removal(text, record.n_bytes, lambda: shelf.remove(record))
    if record.source != "hub":
        text = f"{what}: nothing but its entry; the files stay in {record.folder}"
        return Removal(text, 0, lambda: shelf.remove(record))
    return _plan_cache_removal(record, what)


def _plan_cache_removal(record: CheckpointRecord, what: str) -> Removal:
    """Plan to delete the revision from the hub's cache, or nothing where another record has it too.

    huggingface_hub counts the bytes that only this revision uses.
    """
    check_endpoint()
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    records = shelf.list_records()
    others = [one for one in records if one.revision == record.revision and one.key != record.key]
    if others:
        return _plan_files_removal(record, others, what)
    try:
        strategy = scan_cache_dir().delete_revisions(record.revision)
    except CacheNotFound:
        strategy = None
    n_bytes = strategy.expected_freed_size if strategy else 0

    def execute() -> None:
        shelf.remove(record)
        if strategy:
            strategy.execute()

    return Removal(_describe_cache_removal(record, what, n_bytes), n_bytes, execute)


def _plan_files_removal(record: CheckpointRecord, others: list[CheckpointRecord], what: str) -> Removal:
    """Plan to delete those files that neither `others` of the same revision have, nor another revision."""
    kept = {file.name for one in others for file in one.files}
    folder = Path(record.folder)
    entries = [folder / file.name for file in record.files if file.name not in kept]
    n_links = Counter(path.resolve() for path in folder.parent.rglob("*") if path.is_file())
    unshared = [entry.resolve() for entry in entries if n_links[entry.resolve()] == 1]
    n_bytes = sum(blob.stat().st_size for blob in unshared)

    def execute() -> None:
        shelf.remove(record)
        for path in (*entries, *unshared):
            path.unlink(missing_ok=True)

    return Removal(_describe_cache_removal(record, what, n_bytes), n_bytes, execute)


def _describe_cache_removal(record: CheckpointRecord, what: str, n_bytes: int) -> str:
    where = f"in the Hugging Face cache ({record.folder})"
    return f"{what}: {n_bytes / 1e6:,.1f} MB {where}; what others share stays"


def find_leftovers() -> list[Removal]:
    """Find what downloads that never ended left behind; files that a running download uses are left out."""
    folders = [_plan_path_removal(path) for path in shelf.find_leftovers()]
    cache = cache_folder()
    parts = sorted(cache.glob(f"models--*/blobs/*{PART_SUFFIX}*")) if cache.is_dir() else []
    return folders + [_plan_path_removal(path) for path in parts if not locks.is_held(lock_file(path))]


def _plan_path_removal(path: Path) -> Removal:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    n_bytes = sum(file.lstat().st_size for file in files)
    action = path.unlink if path.is_file() or path.is_symlink() else lambda: shutil.rmtree(path)
    return Removal(f"{n_bytes / 1e6:,.1f} MB in {path}", n_bytes, action)
