"""Fetch one file over HTTP, and go on where an earlier call stopped. Knows ranges and versions of files.

The only state are the bytes on the disk, and beside them the ETag, the server's name of their version.
"""

import os
import time
from collections.abc import Generator, Iterator, Mapping
from io import FileIO
from itertools import islice
from pathlib import Path
from types import MappingProxyType

import requests

from m7b.errors import CheckpointNotFound, DamagedCheckpoint
from m7b.hub.progress import Retries
from m7b.hub.transfer.answers import (
    TryAgain,
    describe_status,
    parse_etag,
    parse_size,
    read_body,
    request,
    shorten_url,
)
from m7b.hub.transfer.disk import translate_disk_errors, write_all
from m7b.hub.transfer.session import Session

_MOST_CHUNKS = 64  # of a page of text


def fetch_size(url: str, *, retries: Retries) -> int:
    """Ask for the length of the file at `url`, in bytes.

    Raises:
        CheckpointNotFound: there is no file, the server does not say its length, or nobody answers.
    """
    with Session() as session:
        while True:
            try:
                return _ask_size(session, url)
            except TryAgain as failure:
                time.sleep(retries.count_failure(str(failure), failure.after_s))


def fetch_text(url: str, *, retries: Retries) -> str:
    """Fetch a page of text.

    Raises:
        CheckpointNotFound: there is no page, or nobody answers.
    """
    with Session() as session:
        while True:
            try:
                answer = request(session, "GET", url, {})
                if answer.status_code != 200:
                    raise CheckpointNotFound(describe_status(url, answer))
                return b"".join(islice(read_body(session, url, answer), _MOST_CHUNKS)).decode(
                    "utf-8", "replace"
                )
            except TryAgain as failure:
                time.sleep(retries.count_failure(str(failure), failure.after_s))


def fetch(
    url: str,
    to: Path,
    *,
    size: int,
    retries: Retries | None = None,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Generator[int, None, None]:
    """Append to `to` the bytes of the file at `url` that it lacks; yields how many bytes are there.

    It yields while it waits, too. Every request has the `headers`; after a redirect to another host, the
    request has no `Authorization`. Where the file has changed on the server, the download starts again, and
    the yielded number falls.

    Raises:
        CheckpointNotFound: there is no such file, or nobody answers.
        DamagedCheckpoint: the file has another length than `size`.
        OutOfResources: the disk is full; what is there stays.
    """
    retries = retries or Retries()
    for planted in (to, _etag_file(to)):
        if planted.is_symlink():  # to make us write elsewhere
            planted.unlink()
    with translate_disk_errors(to, size), to.open("ab", buffering=0) as file, Session() as session:
        if _length(file) > size:
            file.truncate(0)
        longest = have = _length(file)
        yield have
        while have < size:
            try:
                for have in _receive(session, url, file, size, headers):
                    # Only new bytes count, so that a file that changes for ever ends as a failure.
                    if have > longest:
                        longest = have
                        retries.reset()
                    yield have
                if have < size:
                    raise TryAgain(f"{shorten_url(url)}: the answer ended after {have:,} of {size:,} bytes")
            except TryAgain as failure:
                for _ in _wait(retries.count_failure(str(failure), failure.after_s)):
                    yield _length(file)
        os.fsync(file.fileno())
        _etag_file(to).unlink(missing_ok=True)


def _ask_size(session: Session, url: str) -> int:
    for method, headers in (("HEAD", {}), ("GET", {"Range": "bytes=0-0"})):  # some servers refuse HEAD
        with request(session, method, url, headers) as answer:
            size = parse_size(answer)
        if answer.status_code in (200, 206) and size is not None:
            return size
    if answer.status_code in (200, 206):
        raise CheckpointNotFound(f"{shorten_url(url)} does not tell its length")
    raise CheckpointNotFound(describe_status(url, answer))


def _receive(
    session: Session, url: str, file: FileIO, size: int, headers: Mapping[str, str]
) -> Iterator[int]:
    """Ask once for the bytes that `file` lacks, and append what comes; yields the bytes in the file."""
    have, etag_file = _length(file), _etag_file(Path(str(file.name)))
    etag = parse_etag(etag_file.read_text("latin-1")) if have and etag_file.exists() else ""
    ranged = {**headers, "Range": f"bytes={have}-"} if have else headers
    if etag.startswith('"'):  # a weak one, W/"…", never matches
        ranged = {**ranged, "If-Range": etag}
    answer = request(session, "GET", url, ranged)
    if answer.status_code == 416 and have:
        _check_size(url, answer, size)
        answer.close()
        answer = request(session, "GET", url, headers)  # the server refuses the range: ask for the whole file
    position, found = _find_start(url, answer, size, have), parse_etag(answer.headers.get("ETag", ""))
    if position and etag and found and found != etag:
        file.truncate(0)
        raise TryAgain(f"{shorten_url(url)} has changed")
    if not position and not (etag and found == etag):
        file.truncate(have := 0)
        etag_file.write_text(found, "latin-1")
    for chunk in read_body(session, url, answer):
        missing = chunk[max(0, have - position) :]
        position += len(chunk)
        if position > size:
            raise DamagedCheckpoint(f"{shorten_url(url)} sends more than its {size:,} bytes")
        write_all(file, missing)
        have += len(missing)
        yield have


def _find_start(url: str, answer: requests.Response, size: int, have: int) -> int:
    """Find where in the file the body of an answer begins: at `have`, or at 0."""
    if answer.status_code not in (200, 206):
        raise CheckpointNotFound(describe_status(url, answer))
    _check_size(url, answer, size)
    if (encoding := answer.headers.get("Content-Encoding", "identity")) != "identity":
        raise TryAgain(f"{shorten_url(url)} sends {encoding}, which was not asked for")
    if answer.status_code == 200:
        return 0
    if not (told := answer.headers.get("Content-Range", "")).startswith(f"bytes {have}-"):
        raise TryAgain(
            f"{shorten_url(url)} sends {told or 'no range'} where bytes from {have} were asked for"
        )
    return have


def _check_size(url: str, answer: requests.Response, size: int) -> None:
    told = parse_size(answer)
    if told is not None and told != size:
        raise DamagedCheckpoint(f"{shorten_url(url)} has {told:,} bytes instead of {size:,}")


def _wait(seconds: float) -> Iterator[None]:
    """Wait some seconds; yields four times a second, so that progress can be shown."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.25))
        yield


def _length(file: FileIO) -> int:
    return os.fstat(file.fileno()).st_size


def _etag_file(to: Path) -> Path:
    return to.with_name(f"{to.name}.etag")
