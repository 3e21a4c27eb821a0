"""Giving disk back: whole checkpoints, and what downloads left behind. Says first what it would free."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from m7b.errors import OutOfResources
from m7b.hub import shelf
from m7b.hub.shelf import Record
from m7b.hub.sources.huggingface import PART_SUFFIX, cache_folder


@dataclass(frozen=True, slots=True)
class Removal:
    """What would be removed, in a line; `n_bytes` would be free afterwards."""

    text: str
    n_bytes: int
    action: Callable[[], None]

    def execute(self) -> None:
        """Remove it.

        Raises:
            OutOfResources: the system does not let us.
        """
        try:
            self.action()
        except FileNotFoundError:
            pass  # it is gone, which was the wish
        except OSError as error:
            raise OutOfResources(f"cannot remove {error.filename}: {error.strerror}") from None


def removal(record: Record) -> Removal:
    """The removal of a checkpoint: its folder if it is ours, its share of a cache, or its record alone."""
    what = f"{record.name} ({record.format})"
    if record.is_ours:
        text = f"{what}: {record.n_bytes / 1e6:,.1f} MB in {record.folder}"
        return Removal(text, record.n_bytes, lambda: shelf.remove(record))
    if record.source != "hub":
        text = f"{what}: nothing but its entry; the files stay in {record.folder}"
        return Removal(text, 0, lambda: shelf.remove(record))
    return _from_cache(record, what)


def _from_cache(record: Record, what: str) -> Removal:
    """The library counts what only this revision uses; other records of the revision keep it all."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    others = [one for one in shelf.records() if one.revision == record.revision and one.key != record.key]
    try:
        strategy = None if others else scan_cache_dir().delete_revisions(record.revision)
    except CacheNotFound:
        strategy = None
    n_bytes = strategy.expected_freed_size if strategy else 0

    def execute() -> None:
        shelf.remove(record)
        if strategy:
            strategy.execute()

    where = f"in the Hugging Face cache ({record.folder})"
    return Removal(f"{what}: {n_bytes / 1e6:,.1f} MB {where}; what others share stays", n_bytes, execute)


def leftovers() -> list[Removal]:
    """What downloads left that never ended, none of it at work now."""
    folders = [_of_path(path) for path in shelf.leftovers()]
    cache = cache_folder()
    parts = sorted(cache.glob(f"models--*/blobs/*{PART_SUFFIX}*")) if cache.is_dir() else []
    return folders + [_of_path(path) for path in parts if not shelf.anyone_at_work()]


def _of_path(path: Path) -> Removal:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    n_bytes = sum(file.lstat().st_size for file in files)
    action = path.unlink if path.is_file() or path.is_symlink() else lambda: shutil.rmtree(path)
    return Removal(f"{n_bytes / 1e6:,.1f} MB in {path}", n_bytes, action)
