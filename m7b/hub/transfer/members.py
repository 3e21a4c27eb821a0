"""Read the headers of a tar that nobody vouches for: the files of a checkpoint, or a reason to refuse it.

Knows headers and names; does not read or write the files in it.
"""

import tarfile
from dataclasses import dataclass
from io import FileIO
from itertools import islice
from pathlib import Path, PurePosixPath

from m7b.errors import CheckpointNotFound, DamagedCheckpoint

_MOST_MEMBERS = 1000
_LONGEST_NAME = 200
_LONGEST_HEADER = 1 << 16
_RESERVED = (".download.", ".unpack.")  # beginnings of the names that unpacking itself uses


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar: its name in the folder, where its bytes begin, and how many there are."""

    name: str
    offset: int
    size: int


def list_members(tar: Path, folder: Path) -> list[Member]:
    """List the files of a tar.

    Raises:
        CheckpointNotFound: there is no such tar.
        DamagedCheckpoint: it is broken, or holds something that no checkpoint holds.
    """
    infos, end, length = _read_headers(tar), 0, tar.stat().st_size
    paths = [PurePosixPath(info.name) for info in infos]
    depth = _find_depth(infos, paths)
    paths = [PurePosixPath(*path.parts[depth:]) for path in paths]
    folders = {
        str(above).casefold()
        for info, path in zip(infos, paths, strict=True)
        for above in (path if info.isdir() else path.parent, *path.parents)
    }
    members: dict[str, Member] = {}
    for info, path in zip(infos, paths, strict=True):
        why = _find_objection(info, path, folder)
        if info.isreg() and not why:
            if (key := str(path).casefold()) in members or key in folders:
                why = "a name that another one has"
            if not end <= info.offset_data <= info.offset_data + info.size <= length:
                why = "larger than the tar"
            members[key] = Member(str(path), info.offset_data, info.size)
            end = info.offset_data + info.size
        if why:
            raise DamagedCheckpoint(f"{tar.name} holds {info.name!r}, {why}", hint="nothing was unpacked")
    if not members:
        raise DamagedCheckpoint(f"{tar.name} holds no files")
    return list(members.values())


def _read_headers(tar: Path) -> list[tarfile.TarInfo]:
    if not tar.is_file():
        raise CheckpointNotFound(f"there is no tar {tar}")
    try:
        with (
            _Headers(tar) as file,
            tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="strict") as opened,
        ):
            infos = list(islice(opened, _MOST_MEMBERS + 1))
            file.seek(opened.offset)
            is_ended = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    except (tarfile.TarError, OSError, ValueError, OverflowError, LookupError, RecursionError) as error:
        raise DamagedCheckpoint(f"{tar.name} is not a whole tar: {error}") from None
    if len(infos) > _MOST_MEMBERS:
        raise DamagedCheckpoint(f"{tar.name} holds more than {_MOST_MEMBERS} files")
    if not is_ended:  # tarfile takes a broken header for the end
        raise DamagedCheckpoint(f"{tar.name} is not a whole tar: it breaks off at {opened.offset:,}")
    return infos


def _find_depth(infos: list[tarfile.TarInfo], paths: list[PurePosixPath]) -> int:
    """Return how many folders to drop from all names: 1 where all files are below one folder, else 0."""
    tops = {path.parts[0] for path in paths if path.parts}
    is_below = all(info.isdir() or len(path.parts) > 1 for info, path in zip(infos, paths, strict=True))
    return int(len(tops) == 1 and is_below)


def _find_objection(info: tarfile.TarInfo, path: PurePosixPath, folder: Path) -> str:
    """Say what is wrong with a member that will be called `path`; an empty text where nothing is."""
    if not info.isdir() and (info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.issparse()):
        return "neither a file nor a folder"
    if not info.name.isprintable() or len(info.name) > _LONGEST_NAME:
        return "no name for a file"
    if info.name.startswith("/") or ".." in PurePosixPath(info.name).parts:
        return "which leads out of the folder"
    if info.isreg() and str(path).startswith(_RESERVED):
        return "no name for a file"
    try:
        tarfile.data_filter(info.replace(name=str(path), deep=False), str(folder))
    except tarfile.FilterError as error:
        return str(error)
    return ""


class _Headers(FileIO):
    """A tar of which only headers are read; refuses to read more bytes than a header can have."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read a header."""
        if size is None or not 0 <= size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size) or b""
