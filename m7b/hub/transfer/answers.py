"""What web servers answer: redirects followed, and what another try may better told from what it cannot.

Knows requests and their failures; nothing about files. Its messages hold neither credentials nor queries.
"""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from m7b.errors import CheckpointNotFound

_CHUNK = 1 << 18
_TIMEOUTS_S = (10.0, 30.0)  # to connect, and from one byte to the next
_ONWARD = {"http": ("http", "https"), "https": ("https",)}  # where a redirect may lead
_MOST_REDIRECTS = 10
_BUSY = {408, 425, 429, 500, 502, 503, 504, *range(520, 528)}  # the last are what a CDN says of its origin


class TryAgain(Exception):
    """What another try may better; `after_s` is how long the server asks to wait."""

    def __init__(self, why: str, after_s: float | None = None) -> None:
        super().__init__(why)
        self.after_s = after_s


def ask(session: requests.Session, method: str, url: str, headers: Mapping[str, str]) -> requests.Response:
    """The answer at the end of all redirects, its body not yet read.

    Raises:
        CheckpointNotFound: the URL is none, or redirects to where nobody should follow.
        TryAgain: there is no answer, or the server is busy.
    """
    target, headers = url, {"Accept-Encoding": "identity", **headers}
    with _network(url):
        for _ in range(_MOST_REDIRECTS + 1):
            answer = session.request(
                method, target, headers=headers, stream=True, timeout=_TIMEOUTS_S, allow_redirects=False
            )
            if answer.status_code in _BUSY:
                raise TryAgain(status(url, answer), _retry_after_s(answer))
            onward = session.get_redirect_target(answer)
            if onward is None:
                return answer
            answer.close()
            before, target = urlsplit(target), urljoin(target, onward)
            after = urlsplit(target)
            if after.scheme not in _ONWARD[before.scheme]:
                raise CheckpointNotFound(f"{place(url)} redirects from {before.scheme} to {after.scheme}")
            if after.netloc != before.netloc:  # where a token is no business of anybody
                headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
    raise CheckpointNotFound(f"{place(url)} redirects more than {_MOST_REDIRECTS} times")


def body(url: str, answer: requests.Response) -> Iterator[bytes]:
    """The bytes of an answer as they come.

    Raises:
        TryAgain: they stop coming.
    """
    with _network(url), answer:
        # Unlike iter_content, read1 gives what has come: a broken line loses nothing, a slow one shows.
        while chunk := answer.raw.read1(_CHUNK, decode_content=False):
            yield chunk


def size_of(answer: requests.Response) -> int | None:
    """The length of the whole file by the headers of an answer, None where they do not tell."""
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        return None
    length, part = answer.headers.get("Content-Length", ""), answer.headers.get("Content-Range", "")
    told = length if answer.status_code == 200 else part.rpartition("/")[2]
    return int(told) if re.fullmatch(r"[0-9]{1,18}", told) else None


def etag_of(text: str) -> str:
    """The name of a version in a header or a file, empty where it is none."""
    return text if re.fullmatch(r'(W/)?"[\x21\x23-\x7e]*"', text) else ""


def status(url: str, answer: requests.Response) -> str:
    """The status of an answer in words."""
    return f"{place(url)} answers {answer.status_code} {answer.reason}"


def place(url: str) -> str:
    """The host and path of a URL."""
    return re.sub(r"(?s)^\w+://([^/?#]*@)?|[?#].*", "", url)


@contextmanager
def _network(url: str) -> Iterator[None]:
    """Tell what breaks on the way to a server in our words; those of requests hold the whole URL."""
    try:
        yield
    except ValueError:  # among the errors of requests, those that say that a URL is none
        raise CheckpointNotFound(f"{place(url)} is not the address of a file") from None
    except (OSError, urllib3.exceptions.HTTPError) as error:
        raise TryAgain(f"{place(url)}: {_why(error)}") from None


def _why(error: BaseException | None) -> str:
    if isinstance(error, requests.Timeout):
        return "no answer"
    while error:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        error = error.__context__
    return "the connection broke"


def _retry_after_s(answer: requests.Response) -> float | None:
    told = answer.headers.get("Retry-After", "")
    if re.fullmatch(r"[0-9]{1,9}", told):
        return float(told)
    try:
        return max(0.0, parsedate_to_datetime(told).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
