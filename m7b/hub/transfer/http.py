"""One file over HTTP, gone on with wherever it broke off. Knows ranges and versions, not what is in the file.

The bytes that are there are the only state; beside them lies the server's name for their version, its ETag.
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
from m7b.hub.transfer.answers import TryAgain, ask, body, etag_of, place, size_of, status
from m7b.hub.transfer.disk import write_all, writing

_MOST_CHUNKS = 64  # of a page of text


def remote_size(url: str, *, retries: Retries) -> int:
    """The length of the file at `url`.

    Raises:
        CheckpointNotFound: there is none, its length is not told, or nobody answers.
    """
    with requests.Session() as session:
        while True:
            try:
                return _size(session, url)
            except TryAgain as failure:
                time.sleep(retries.delay_s(str(failure), failure.after_s))


def text(url: str, *, retries: Retries) -> str:
    """A page of text.

    Raises:
        CheckpointNotFound: there is none, or nobody answers.
    """
    with requests.Session() as session:
        while True:
            try:
                answer = ask(session, "GET", url, {})
                if answer.status_code != 200:
                    raise CheckpointNotFound(status(url, answer))
                return b"".join(islice(body(url, answer), _MOST_CHUNKS)).decode("utf-8", "replace")
            except TryAgain as failure:
                time.sleep(retries.delay_s(str(failure), failure.after_s))


def fetch(
    url: str,
    to: Path,
    *,
    size: int,
    retries: Retries | None = None,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Generator[int, None, None]:
    """Append to `to` what it lacks of the file at `url`; tells the bytes that are there, while it waits too.

    `headers` go with every request; of these, an authorization is not shown to other hosts. The number that
    is told falls where the file has changed on the server: then it starts again.

    Raises:
        CheckpointNotFound: there is no such file, or nobody answers.
        DamagedCheckpoint: the file has another length than `size`.
        OutOfResources: the disk is full; what is there stays.
    """
    retries = retries or Retries()
    for planted in (to, _etag_file(to)):
        if planted.is_symlink():  # to have us write elsewhere
            planted.unlink()
    with writing(to, size), to.open("ab", buffering=0) as file, requests.Session() as session:
        if _length(file) > size:
            file.truncate(0)
        longest = have = _length(file)
        yield have
        while have < size:
            try:
                for have in _receive(session, url, file, size, headers):
                    if have > longest:  # not bytes that came before: a server that always changes has an end
                        longest = have
                        retries.succeeded()
                    yield have
                if have < size:
                    raise TryAgain(f"{place(url)}: the answer ended after {have:,} of {size:,} bytes")
            except TryAgain as failure:
                for _ in _waiting(retries.delay_s(str(failure), failure.after_s)):
                    yield _length(file)
        os.fsync(file.fileno())
        _etag_file(to).unlink(missing_ok=True)


def _size(session: requests.Session, url: str) -> int:
    for method, headers in (("HEAD", {}), ("GET", {"Range": "bytes=0-0"})):  # some servers refuse HEAD
        with ask(session, method, url, headers) as answer:
            size = size_of(answer)
        if answer.status_code in (200, 206) and size is not None:
            return size
    if answer.status_code in (200, 206):
        raise CheckpointNotFound(f"{place(url)} does not tell its length")
    raise CheckpointNotFound(status(url, answer))


def _receive(
    session: requests.Session, url: str, file: FileIO, size: int, headers: Mapping[str, str]
) -> Iterator[int]:
    """Ask once for the bytes that `file` lacks, and append what comes."""
    have, etag_file = _length(file), _etag_file(Path(str(file.name)))
    etag = etag_of(etag_file.read_text("latin-1")) if have and etag_file.exists() else ""
    ranged = {**headers, "Range": f"bytes={have}-"} if have else headers
    if etag.startswith('"'):  # a weak one, W/"…", never matches
        ranged = {**ranged, "If-Range": etag}
    answer = ask(session, "GET", url, ranged)
    if answer.status_code == 416 and have:
        _check_size(url, answer, size)
        answer.close()
        answer = ask(session, "GET", url, headers)  # it cannot cut the file: the whole of it, then
    position, found = _position(url, answer, size, have), etag_of(answer.headers.get("ETag", ""))
    if position and etag and found and found != etag:
        file.truncate(0)
        raise TryAgain(f"{place(url)} has changed")
    if not position and not (etag and found == etag):
        file.truncate(have := 0)
        etag_file.write_text(found, "latin-1")
    for chunk in body(url, answer):
        missing = chunk[max(0, have - position) :]
        position += len(chunk)
        if position > size:
            raise DamagedCheckpoint(f"{place(url)} sends more than its {size:,} bytes")
        write_all(file, missing)
        have += len(missing)
        yield have


def _position(url: str, answer: requests.Response, size: int, have: int) -> int:
    """Where in the file the body of an answer begins: at `have`, or at 0."""
    if answer.status_code not in (200, 206):
        raise CheckpointNotFound(status(url, answer))
    _check_size(url, answer, size)
    if (encoding := answer.headers.get("Content-Encoding", "identity")) != "identity":
        raise TryAgain(f"{place(url)} sends {encoding}, which was not asked for")
    if answer.status_code == 200:
        return 0
    if not (told := answer.headers.get("Content-Range", "")).startswith(f"bytes {have}-"):
        raise TryAgain(f"{place(url)} sends {told or 'no range'} where bytes from {have} were asked for")
    return have


def _check_size(url: str, answer: requests.Response, size: int) -> None:
    told = size_of(answer)
    if told is not None and told != size:
        raise DamagedCheckpoint(f"{place(url)} has {told:,} bytes instead of {size:,}")


def _waiting(seconds: float) -> Iterator[None]:
    """Wait in pieces that are short enough for a screen to stay alive."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.25))
        yield


def _length(file: FileIO) -> int:
    return os.fstat(file.fileno()).st_size


def _etag_file(to: Path) -> Path:
    return to.with_name(f"{to.name}.etag")
