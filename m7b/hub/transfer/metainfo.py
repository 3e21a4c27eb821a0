"""Read which files a torrent says it holds, and refuse hostile torrents. Knows no peers and no disk."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from m7b.errors import DamagedCheckpoint, UnsupportedCheckpoint

LARGEST_METADATA = 8 << 20
LARGEST_PIECE = 64 << 20
LARGEST_TOTAL = 1 << 40
LONGEST_PATH = 1000
MOST_FILES = 1000


@dataclass(frozen=True, slots=True)
class TorrentInfo:
    """What a torrent holds: `files` are (path, size) as they will lie in a folder."""

    name: str
    files: tuple[tuple[str, int], ...]
    total: int


def parse_info(info: Mapping[bytes, Any], reserved: tuple[str, ...] = ()) -> TorrentInfo:
    """Read the names and sizes in a torrent's info dictionary; paths leave out the folder of all its files.

    A BitTorrent library would mend bad names; here they are refused. No file may have one of the `reserved`
    names.

    Raises:
        DamagedCheckpoint: the torrent is hostile or contradicts itself.
        UnsupportedCheckpoint: it is not of version 1.
    """
    if b"meta version" in info:
        raise UnsupportedCheckpoint("the torrent is of version 2 or hybrid", hint="take one of version 1")
    try:
        entries = info[b"files"] if b"files" in info else [{**info, b"path": [info[b"name"]]}]
        name = _check_part(info[b"name"])
        files = tuple(
            ("/".join(map(_check_part, entry[b"path"])), int(entry[b"length"])) for entry in entries
        )
        has_others = any(b"symlink path" in e or e.get(b"attr", b"").strip(b"xh") for e in entries)
        piece = int(info[b"piece length"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _make_hostile_error(f"its metadata are wrong ({type(error).__name__}: {error})") from None
    total = sum(size for _, size in files)
    taken = [*reserved, *(path.casefold() for path, _ in files)]
    folders = {str(folder) for path in taken for folder in PurePosixPath(path).parents}
    if has_others:
        raise _make_hostile_error("it holds links or padding")
    if not 0 < len(files) <= MOST_FILES or max(len(path) for path, _ in files) > LONGEST_PATH:
        raise _make_hostile_error(f"it holds {len(files)} files, or a very long name")
    if len(set(taken)) < len(taken) or not folders.isdisjoint(taken):
        raise _make_hostile_error("two of its files want the same name")
    if not 0 < total <= LARGEST_TOTAL or min(size for _, size in files) < 0 or piece > LARGEST_PIECE:
        raise _make_hostile_error(f"it holds {total} bytes in pieces of {piece}")
    return TorrentInfo(name, files, total)


def _check_part(raw: bytes) -> str:
    """Decode one part of a path, and refuse what is no name of a file."""
    name = raw.decode()
    if name in ("", ".", "..") or not name.isprintable() or len(raw) > 255 or set(name) & set("/\\:"):
        raise _make_hostile_error(f"{name!r} is no name of a file")
    return name


def _make_hostile_error(reason: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(f"the torrent is refused: {reason}", hint="take one from a source you trust")
