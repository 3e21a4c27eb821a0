"""Requests to web servers: follows redirects, and tells failures that another try may mend from final ones.

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
    """A failure that another try may mend; the server asks to wait `after_s` seconds, if it asks."""

    def __init__(self, why: str, after_s: float | None = None) -> None:
        super().__init__(why)
        self.after_s = after_s


def request(
    session: requests.Session, method: str, url: str, headers: Mapping[str, str]
) -> requests.Response:
    """Send a request and follow its redirects; returns the last answer, its body not yet read.

    Raises:
        CheckpointNotFound: the URL is no URL, or redirects from https to http, or too often.
        TryAgain: there is no answer, or the server is busy.
    """
    target, headers = url, {"Accept-Encoding": "identity", **headers}
    with _translate_errors(url):
        for _ in range(_MOST_REDIRECTS + 1):
            answer = session.request(
                method, target, headers=headers, stream=True, timeout=_TIMEOUTS_S, allow_redirects=False
            )
            if answer.status_code in _BUSY:
                raise TryAgain(describe_status(url, answer), _parse_retry_after(answer))
            onward = session.get_redirect_target(answer)
            if onward is None:
                return answer
            answer.close()
            before, target = urlsplit(target), urljoin(target, onward)
            after = urlsplit(target)
            if after.scheme not in _ONWARD[before.scheme]:
                raise CheckpointNotFound(
                    f"{shorten_url(url)} redirects from {before.scheme} to {after.scheme}"
                )
            if after.netloc != before.netloc:  # another host must not see the token
                headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
    raise CheckpointNotFound(f"{shorten_url(url)} redirects more than {_MOST_REDIRECTS} times")


def read_body(url: str, answer: requests.Response) -> Iterator[bytes]:
    """Read the body of an answer; yields the bytes as they come.

    Raises:
        TryAgain: they stop coming.
    """
    with _translate_errors(url), answer:
        # Unlike iter_content, read1 returns what is there: a broken line loses no byte.
        while chunk := answer.raw.read1(_CHUNK, decode_content=False):
            yield chunk


def parse_size(answer: requests.Response) -> int | None:
    """Read the length of the whole file from the headers of an answer, None where they do not say it."""
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        return None
    length, part = answer.headers.get("Content-Length", ""), answer.headers.get("Content-Range", "")
    told = length if answer.status_code == 200 else part.rpartition("/")[2]
    return int(told) if re.fullmatch(r"[0-9]{1,18}", told) else None


def parse_etag(text: str) -> str:
    """Return the ETag, which names a version of a file, where `text` is one, else an empty text."""
    return text if re.fullmatch(r'(W/)?"[\x21\x23-\x7e]*"', text) else ""


def describe_status(url: str, answer: requests.Response) -> str:
    """Say in words with which status a server answered."""
    return f"{shorten_url(url)} answers {answer.status_code} {answer.reason}"


def shorten_url(url: str) -> str:
    """Return the host and path of a URL, without user, password and query."""
    return re.sub(r"(?s)^\w+://([^/?#]*@)?|[?#].*", "", url)


@contextmanager
def _translate_errors(url: str) -> Iterator[None]:
    """Turn errors on the way to a server into ours: messages of `requests` hold the whole URL."""
    try:
        yield
    except ValueError:  # those errors of requests that mean: this is no URL
        raise CheckpointNotFound(f"{shorten_url(url)} is not the address of a file") from None
    except (OSError, urllib3.exceptions.HTTPError) as error:
        raise TryAgain(f"{shorten_url(url)}: {_describe_error(error)}") from None


def _describe_error(error: BaseException | None) -> str:
    if isinstance(error, requests.Timeout):
        return "no answer"
    while error:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        error = error.__context__
    return "the connection broke"


def _parse_retry_after(answer: requests.Response) -> float | None:
    told = answer.headers.get("Retry-After", "")
    if re.fullmatch(r"[0-9]{1,9}", told):
        return float(told)
    try:
        return max(0.0, parsedate_to_datetime(told).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
