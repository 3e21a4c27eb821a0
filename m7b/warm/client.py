"""Asking a server for an answer, over one connection. Knows sockets and `wire`; nothing about models."""

import json
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any
from urllib.parse import urlsplit

from m7b.completions.remarks import Remarks
from m7b.completions.request import CompletionRequest
from m7b.errors import NoServer, UsageError
from m7b.generation import Finished, GenerationEvent
from m7b.warm.wire import ANSWER_PATH, pack, unpack, unpack_error

_CONNECT_S = 5.0
_PORT = 80
_OTHER_MODEL = 409


class WarmAnswer:
    """The answer of a server to a request, in the shape of `completions.local.LocalAnswer`.

    Args:
        address: `unix:PATH` or `http://host:port`.
        request: what to answer.
        identity: that of the model that is to answer; None for any.
        is_whole: whether the answer object is wanted.
        key: what lets in, where the server wants one.

    Raises:
        NoServer: nobody answers there, or not now.
        M7bError: the request cannot be answered, as a model of this process would say.
    """

    def __init__(
        self,
        address: str,
        request: CompletionRequest,
        *,
        identity: str | None,
        is_whole: bool,
        key: str = "",
    ) -> None:
        self._address, self._n = address, request.n
        self._answer: dict[str, Any] | None = None
        body = {"request": pack(request), "identity": identity, "is_whole": is_whole}
        try:
            self._connection = _connect(address)
            self._lines = _post(self._connection, json.dumps(body).encode(), key)
            status = int(self._lines.readline().split()[1])
            while self._lines.readline().strip():
                pass
        except (OSError, ValueError, IndexError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else "no answer"
            raise NoServer(f"no server of m7b at {address}: {reason}", hint="m7b serve starts one") from None
        if status != 200:
            raise self._refuse(status)
        first = self._read()
        self.remarks: Remarks = unpack(first["remarks"])

    def samples(self) -> Iterator[Iterator[GenerationEvent]]:
        """The events of each sample in turn; each must be pulled to its end before the next."""
        waiting: list[deque[GenerationEvent]] = [deque() for _ in range(self._n)]
        try:
            for mine in waiting:
                yield self._follow(mine, waiting)
            while self._answer is None and self._n:
                if "end" in (line := self._read()):
                    self._answer = line["end"] or {}
        finally:
            self._connection.close()

    def format(self) -> dict[str, Any]:
        """The answer object, behind the end of the last sample."""
        assert self._answer, "it was not asked for"
        return self._answer

    def _follow(
        self, mine: deque[GenerationEvent], waiting: list[deque[GenerationEvent]]
    ) -> Iterator[GenerationEvent]:
        while True:
            while mine:
                event = mine.popleft()
                yield event
                if isinstance(event, Finished):
                    return
            line = self._read()
            waiting[line["index"]].append(unpack(line["event"]))

    def _read(self) -> dict[str, Any]:
        """What happens next.

        Raises:
            NoServer: the answer was cut off.
            M7bError: it failed.
        """
        line = b""
        with suppress(ConnectionError):
            line = self._lines.readline()
        if not line.endswith(b"\n"):
            raise NoServer(
                f"the server at {self._address} ended in the middle of the answer", hint="ask again"
            )
        fields: dict[str, Any] = json.loads(line)
        if "error" in fields:
            raise unpack_error(fields["error"])
        return fields

    def _refuse(self, status: int) -> NoServer | UsageError:
        """What the server's refusal means here."""
        try:
            reason = json.loads(self._lines.read())["error"]["message"]
        except (ValueError, LookupError, TypeError, OSError):
            reason = f"status {status}"
        self._connection.close()
        if status == _OTHER_MODEL:
            hint = "leave out the options of the model, or start a server with the same"
            return UsageError(f"the server at {self._address}: {reason}", hint=hint)
        return NoServer(f"the server at {self._address} refuses: {reason}", hint="--server off asks none")


def check_address(address: str) -> None:
    """See that `address` is one.

    Raises:
        UsageError: it is none.
    """
    _split(address)


def _split(address: str) -> str | tuple[str, int]:
    """The path of a socket, or a host and a port."""
    if address.startswith("unix:") and len(address) > len("unix:"):
        return address.removeprefix("unix:")
    try:
        parts = urlsplit(address)
        if parts.scheme == "http" and parts.hostname:
            return parts.hostname, parts.port or _PORT
    except ValueError:
        pass
    raise UsageError(
        f"--server {address!r} is no server", hint="it can be auto, off, http://HOST:PORT or unix:PATH"
    )


def _connect(address: str) -> socket.socket:
    place = _split(address)
    if isinstance(place, tuple):
        connection = socket.create_connection(place, _CONNECT_S)
    else:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_CONNECT_S)
        connection.connect(place)
    connection.settimeout(None)
    return connection


def _post(connection: socket.socket, body: bytes, key: str) -> IO[bytes]:
    """Send a request; returns what reads the answer. HTTP/1.0 has the server close behind it."""
    peer = connection.getpeername()
    host = "localhost" if isinstance(peer, str) else peer[0]
    host = f"[{host}]" if ":" in host else host
    head = [f"POST {ANSWER_PATH} HTTP/1.0", f"Host: {host}", f"Content-Length: {len(body)}"]
    if key:
        head.append(f"Authorization: Bearer {key}")
    connection.sendall("\r\n".join([*head, "", ""]).encode() + body)
    return connection.makefile("rb")
