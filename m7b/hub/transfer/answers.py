"""Requests to web servers: follows redirects, and tells failures that another try may mend from final ones.

Knows requests and their failures; nothing about files. Its messages hold neither credentials nor queries.
"""

import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from m7b.errors import CheckpointNotFound
from m7b.hub.transfer.session import Session
from m7b.network import find_proxy, name_proxy

_CHUNK = 1 << 18
_TIMEOUTS_S = (10.0, 30.0)  # to connect, and from one byte to the next
_ONWARD = {"http": ("http", "https"), "https": ("https",)}  # where a redirect may lead
_MOST_REDIRECTS = 10
_BUSY = {408, 425, 429, 500, 502, 503, 504, *range(520, 528)}  # the last are what a CDN says of its origin

_UNKNOWN_ISSUER = (2, 18, 19, 20, 21)  # of OpenSSL: no issuer, or one that nobody named
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "UNKNOWN_PROTOCOL")
_NO_SUCH_HOST = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))


class TryAgain(Exception):
    """A failure that another try may mend; the server asks to wait `after_s` seconds, if it asks."""

    def __init__(self, why: str, after_s: float | None = None) -> None:
        super().__init__(why)
        self.after_s = after_s


def request(session: Session, method: str, url: str, headers: Mapping[str, str]) -> requests.Response:
    """Send a request and follow its redirects; returns the last answer, its body not yet read.

    Raises:
        CheckpointNotFound: the URL is no URL, or redirects from https to http, or too often; or another try
            would not mend what stands in the way.
        TryAgain: there is no answer, or the server is busy.
    """
    target, headers = url, {"Accept-Encoding": "identity", **headers}
    for _ in range(_MOST_REDIRECTS + 1):
        with translate_errors(session, target, asked=url):
            answer = session.send_once(method, target, headers=headers, timeout=_TIMEOUTS_S)
            refuse_gatekeeper(target, answer)
            if answer.status_code in _BUSY:
                raise TryAgain(describe_status(target, answer), _parse_retry_after(answer))
            onward = session.get_redirect_target(answer)
            if onward is None:
                return answer
            answer.close()
            before, target = urlsplit(target), urljoin(target, onward)
            after = urlsplit(target)
        if after.scheme not in _ONWARD[before.scheme]:
            raise CheckpointNotFound(f"{shorten_url(url)} redirects from {before.scheme} to {after.scheme}")
        if after.netloc != before.netloc:  # another host must not see the token
            headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
    raise CheckpointNotFound(f"{shorten_url(url)} redirects more than {_MOST_REDIRECTS} times")


def request_once(
    session: Session, method: str, url: str, headers: Mapping[str, str], body: bytes = b""
) -> requests.Response:
    """Send a request and follow no redirect; returns the answer, whatever it is, its body not yet read.

    Raises:
        CheckpointNotFound: another try would not mend what stands in the way.
        TryAgain: there is no answer.
    """
    with translate_errors(session, url):
        return session.send_once(method, url, headers=headers, data=body or None, timeout=_TIMEOUTS_S)


def read_body(session: Session, url: str, answer: requests.Response) -> Iterator[bytes]:
    """Read the body of an answer; yields the bytes as they come.

    Raises:
        TryAgain: they stop coming.
    """
    with translate_errors(session, url), answer:
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


def refuse_gatekeeper(url: str, answer: requests.Response) -> None:
    """Refuse an answer that comes from something on the way, which no other try would get past.

    Raises:
        CheckpointNotFound: it does.
    """
    proxy = find_proxy(url)
    if answer.status_code == 407 and proxy:
        raise _make_proxy_error(proxy, answer.status_code)
    is_page = answer.headers.get("Content-Type", "").lower().startswith("text/html")
    if answer.status_code == 511 or (answer.status_code == 200 and is_page and not _is_index(url)):
        raise CheckpointNotFound(
            f"{shorten_url(url)} is answered with a web page, not with what was asked for",
            hint="networks that ask people to log in do so: open any page in a browser, and see the address",
        )


@contextmanager
def translate_errors(session: Session, url: str, *, asked: str | None = None) -> Iterator[None]:
    """Turn errors on the way to a server into ours: messages of `requests` hold the whole URL.

    `asked` is the address that led to `url`, where there was a redirect.
    """
    try:
        yield
    except ValueError:  # those errors of requests that mean: this is no URL
        raise CheckpointNotFound(f"{shorten_url(asked or url)} is not the address of a file") from None
    except (OSError, urllib3.exceptions.HTTPError) as error:
        raise _translate_failure(session, url, error) from None


def _translate_failure(session: Session, url: str, error: Exception) -> Exception:
    """Make our error for a failure: CheckpointNotFound where another try would fail too, else TryAgain."""
    causes, proxy = list(_list_causes(error)), find_proxy(url)
    for cause in causes:
        if refusal := _make_refusal(cause, proxy, url, is_known=session.has_answered(url)):
            return refusal
    way = f" by the proxy {name_proxy(proxy)}" if proxy else ""
    return TryAgain(f"{shorten_url(url)}{way}: {_describe_error(error)}")


def _make_refusal(
    cause: BaseException, proxy: str | None, url: str, *, is_known: bool
) -> CheckpointNotFound | None:
    """Make the error for a cause that another try would not mend, None where another try may."""
    host = urlsplit(url).hostname
    refused = re.search(r"Tunnel connection failed: (40[1357])|authentication failed", str(cause))
    match cause:
        case ssl.SSLCertVerificationError():
            return CheckpointNotFound(
                f"nobody vouches for the certificate of {host}: {cause.verify_message}",
                hint="if your network has its own, set SSL_CERT_FILE to the file that holds it"
                if cause.verify_code in _UNKNOWN_ISSUER
                else "see that the clock is right, and the address",
            )
        case ssl.SSLError() if cause.reason in _NO_TLS:
            return CheckpointNotFound(
                f"{host} does not speak TLS there" + (f", or {name_proxy(proxy)} does not" if proxy else ""),
                hint="see whether its address, or that of the proxy, is to begin with http://",
            )
        case socket.gaierror() if cause.errno in _NO_SUCH_HOST and not is_known:  # a known one comes back
            return CheckpointNotFound(
                f"there is no host {name_proxy(proxy) if proxy else host}, as far as this network knows",
                hint="see its spelling, or whether the network is there",
            )
        case _ if proxy and refused:
            return _make_proxy_error(proxy, int(refused[1] or 407), host)
    return None


def _make_proxy_error(proxy: str, status: int, host: str | None = None) -> CheckpointNotFound:
    name = name_proxy(proxy)
    if status == 407:
        return CheckpointNotFound(
            f"the proxy {name} asks for a name and a password, or refuses those that it got (407)",
            hint="put them into the variable that names it: http://NAME:PASSWORD@HOST:PORT",
        )
    return CheckpointNotFound(
        f"the proxy {name} refuses to lead to {host} ({status})",
        hint="add the host to no_proxy, or ask who runs it",
    )


def _list_causes(error: BaseException | None) -> Iterator[BaseException]:
    """List an error and those it came from; urllib3 keeps some in `reason`, others in its arguments."""
    while error:
        yield error
        inner = [one for one in (getattr(error, "reason", None), *error.args) if isinstance(one, Exception)]
        error = inner[0] if inner else error.__cause__ or error.__context__


def _describe_error(error: BaseException) -> str:
    if isinstance(error, requests.Timeout):
        return "no answer"
    causes = list(_list_causes(error))
    if refused := re.search(r"Tunnel connection failed: (\d+)", " ".join(map(str, causes))):
        return f"it answers {refused[1]}"
    told = (cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror)
    return next(told, "the connection broke")


def _is_index(url: str) -> bool:
    """Whether a web page is what `url` should lead to: the index of a package, a folder."""
    return urlsplit(url).path.endswith("/")


def _parse_retry_after(answer: requests.Response) -> float | None:
    told = answer.headers.get("Retry-After", "")
    if re.fullmatch(r"[0-9]{1,9}", told):
        return float(told)
    try:
        return max(0.0, parsedate_to_datetime(told).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
