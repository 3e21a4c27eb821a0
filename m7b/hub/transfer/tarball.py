"""Checkpoints published as a tar: fetch it, compare its checksum, unpack it without a second copy.

A tar is unpacked from its end: the last chunk is copied and synced to the disk, then cut off the tar, and so
on to the first. The length of the tar says what is left to do, so the next call goes on after a kill.
"""

import json
from collections.abc import Iterator
from dataclasses import astuple
from io import FileIO
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from m7b.errors import DamagedCheckpoint
from m7b.hub import checksums
from m7b.hub.progress import FileProgress, Retries, report_file
from m7b.hub.transfer import http
from m7b.hub.transfer.disk import sync, translate_disk_errors, write_all
from m7b.hub.transfer.members import Member, list_members

_TAR = ".download.tar"
_STATE = ".unpack.json"
CHUNK = 64 << 20
"""The most that lies on the disk twice, in bytes."""
_BLOCK = 1 << 20


def fetch(
    url: str, folder: Path, *, checksum: str | None, retries: Retries | None = None
) -> Iterator[FileProgress]:
    """Fetch the tar at `url` and unpack it into `folder`; `checksum` is such as `md5:37da…`, None if unknown.

    Raises:
        CheckpointNotFound: there is no such file, or nobody answers.
        DamagedCheckpoint: it is not what was published, or no tar to unpack.
        OutOfResources: the disk is full; the same call then goes on.
    """
    retries = retries or Retries()
    tar, name = folder / _TAR, PurePosixPath(urlsplit(url).path).name
    with translate_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not (folder / _STATE).exists():
        size, before = http.fetch_size(url, retries=retries), None
        for done in http.fetch(url, tar, size=size, retries=retries):
            yield FileProgress(name, done, size, "waiting" if done == before else "")
            before = done
        try:
            if checksum:
                yield from _check(tar, name, checksum)
            list_members(tar, folder)
        except DamagedCheckpoint:
            tar.unlink()
            raise
    yield from unpack(tar, folder)


def count_here(folder: Path) -> int:
    """Count the bytes of a tar that an earlier call has fetched into `folder`."""
    tar = folder / _TAR
    return tar.stat().st_size if tar.exists() else 0


def unpack(tar: Path, folder: Path, *, keep: bool = False) -> Iterator[FileProgress]:
    """Unpack `tar` into `folder`, and remove the tar piece by piece; with `keep` it stays.

    A file gets its name when it is whole. After a kill, the next call goes on.

    Raises:
        CheckpointNotFound: there is no such tar.
        DamagedCheckpoint: it is broken, or holds what no checkpoint holds; then nothing was unpacked.
        OutOfResources: the disk is full.
    """
    state, done = folder / _STATE, 0
    members = _load_members(state, tar) if state.exists() and not keep else list_members(tar, folder)
    total = sum(member.size for member in members)
    with translate_disk_errors(folder, total):
        folder.mkdir(parents=True, exist_ok=True)
        if not keep:
            _save_members(state, tar, members)
        for member in reversed(members):
            for copied in _unpack_member(member, tar, folder, keep):
                yield FileProgress(member.name, done + copied, total, "unpacking")
            done += member.size
        for above in {above for member in members for above in (folder / member.name).parents}:
            if above.is_relative_to(folder):
                sync(above)
        if not keep:
            tar.unlink(missing_ok=True)
            sync(tar.parent)
            state.unlink()


def _check(tar: Path, name: str, checksum: str) -> Iterator[FileProgress]:
    reading = checksums.compute_checksum(tar, checksum.partition(":")[0])
    found = yield from report_file(reading, name, 0, tar.stat().st_size, "checking")
    if found != checksum:
        raise checksums.make_mismatch_error(name, found, checksum)


def _unpack_member(member: Member, tar: Path, folder: Path, keep: bool) -> Iterator[int]:
    """Copy a member from its end, and cut each synced chunk off the tar; yields the bytes copied."""
    part, target, start = folder / f".unpack.{member.offset}", folder / member.name, member.offset
    end = min(start + member.size, max(start, tar.stat().st_size if tar.exists() else 0))
    if end == start + member.size:
        part.unlink(missing_ok=True)
        part.touch()
    elif not _is_whole(part, member) and not (end == start and _is_whole(target, member)):
        raise DamagedCheckpoint(
            f"{member.name} was unpacked in part, and that part is gone from {folder}",
            hint=f"remove {folder} and begin again",
        )
    while end > start:
        begin = max(start, end - CHUNK)
        with FileIO(tar, "r" if keep else "r+") as source, FileIO(part, "r+") as copy:
            source.seek(begin)
            copy.seek(begin - start)
            _copy(source, copy, end - begin)
            sync(part)
            sync(folder)
            if not keep:
                source.truncate(begin)
        end = begin
        yield start + member.size - end
    if part.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)


def _copy(source: FileIO, to: FileIO, n: int) -> None:
    while n:
        block = source.read(min(n, _BLOCK))
        if not block:
            raise DamagedCheckpoint(f"{source.name} ends {n:,} bytes early")
        write_all(to, block)
        n -= len(block)


def _is_whole(path: Path, member: Member) -> bool:
    return path.is_file() and path.stat().st_size == member.size


def _save_members(state: Path, tar: Path, members: list[Member]) -> None:
    new = state.with_name(f"{state.name}.new")
    new.write_text(json.dumps([tar.name, [astuple(member) for member in members]]))
    sync(new)
    new.replace(state)
    sync(state.parent)


def _load_members(state: Path, tar: Path) -> list[Member]:
    try:
        name, fields = json.loads(state.read_text())
        members = [Member(*one) for one in fields]
    except (ValueError, TypeError):
        raise DamagedCheckpoint(
            f"{state} is damaged", hint=f"remove {state.parent} and begin again"
        ) from None
    if name != tar.name:
        raise DamagedCheckpoint(f"{state.parent} holds a part of {name}, not of {tar.name}")
    return members
