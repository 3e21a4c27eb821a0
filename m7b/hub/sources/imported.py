"""Checkpoints that the user has already: a folder, a GGUF file, or the tar of an original release."""

import os
import tarfile
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

from m7b.errors import CheckpointNotFound
from m7b.hub import checksums, layouts
from m7b.hub.plan import DownloadPlan
from m7b.hub.progress import FileProgress, Retries
from m7b.hub.shelf import File, make_key
from m7b.hub.transfer import tarball
from m7b.hub.transfer.members import list_members
from m7b.parts import list_part_names
from m7b.paths import checkpoints_folder

_BLOCK = 1 << 24


@dataclass(frozen=True, slots=True)
class PathSource:
    """A folder, a GGUF file or a tar on this machine.

    Files stay where they are, or with `copies` are copied. A tar is unpacked into a folder of ours, and kept.
    """

    place: Path
    copies: bool = False
    kind: str = "path"

    @property
    def origin(self) -> str:
        """The path, without links."""
        return str(self.place.resolve())

    def plan(self, name: str, retries: Retries) -> Generator[FileProgress, None, DownloadPlan]:
        """Plan which files to use, to copy or to unpack.

        Raises:
            CheckpointNotFound: the path does not exist, or holds no checkpoint.
        """
        yield from ()
        place = self.place.resolve()
        if not place.exists():
            raise CheckpointNotFound(f"{self.place} is not there", hint="name a folder, a GGUF file or a tar")
        if self._is_tar:
            files, names = [place], [member.name for member in list_members(place, place.parent)]
        else:
            files = self._list_files(place)
            names = [file.name for file in files]
        format, chosen = layouts.choose_files(names, str(self.place), layouts.detect_format(names), None)
        if not self._is_tar:
            files = [file for file in files if file.name in chosen]
        is_ours = self.copies or self._is_tar
        folder = place if place.is_dir() else place.parent
        if is_ours:
            folder = checkpoints_folder() / make_key(name, format)
        found = tuple(File(file.name, file.stat().st_size, "") for file in files)
        return DownloadPlan(
            format=format,
            origin=self.origin,
            revision="",
            files=found,
            folder=folder,
            path=folder / chosen[0] if format == "gguf" else folder,
            n_here=0 if is_ours else sum(file.size for file in found),
            is_ours=is_ours,
        )

    def fetch(self, plan: DownloadPlan, retries: Retries) -> Generator[FileProgress, None, DownloadPlan]:
        """Copy or unpack the files if the plan says so, and compute their checksums.

        Raises:
            DamagedCheckpoint: the tar cannot be unpacked.
            OSError: the disk is full.
        """
        if self._is_tar:
            yield from tarball.unpack(Path(plan.origin), plan.work, keep=True)
        elif plan.is_ours:
            yield from self._copy(plan)
        if plan.is_ours:
            return replace(plan, files=(yield from checksums.checksum_folder(plan.work)))
        names = [file.name for file in plan.files]
        return replace(plan, files=(yield from checksums.checksum_files(plan.folder, names)))

    @staticmethod
    def _list_files(place: Path) -> list[Path]:
        """The files of a folder; of a file all the parts that are here, where it is one of a split."""
        if place.is_dir():
            return sorted(file for file in place.iterdir() if file.is_file())
        parts = (place.with_name(name) for name in list_part_names(place.name))
        return [part for part in parts if part.is_file()]

    @property
    def _is_tar(self) -> bool:
        return self.place.is_file() and tarfile.is_tarfile(self.place)

    def _copy(self, plan: DownloadPlan) -> Generator[FileProgress, None, None]:
        place, done = Path(plan.origin), 0
        folder = place if place.is_dir() else place.parent
        for file in plan.files:
            source = folder / file.name
            with source.open("rb") as reader, (plan.work / file.name).open("wb") as writer:
                while block := reader.read(_BLOCK):
                    writer.write(block)
                    done += len(block)
                    yield FileProgress(file.name, done, plan.total, "copying")
                writer.flush()
                os.fsync(writer.fileno())
