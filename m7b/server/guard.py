"""Who may ask: keys, hosts, origins and sizes, before a request reaches a route. An ASGI middleware.

A page in somebody's browser can reach servers on loopback, under a name that it makes resolve to
127.0.0.1; so the Host and the Origin of each request are checked (see OWASP on DNS rebinding).
"""

import asyncio
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m7b.server.errors import HttpError, make_error_response

_OPEN_PATHS = {"/health"}
_BODY_S = 30.0


@dataclass(frozen=True, slots=True)
class Access:
    """Who may ask, and how much.

    Attributes:
        keys: any of these lets in; none let everybody in.
        hosts: names that requests may be addressed to; None allows any.
        origins: pages that may ask from a browser; `*` is all.
        max_bytes: of a body.
        private: a Unix socket in a folder of this user's alone, where nobody is asked for a key.
    """

    keys: tuple[str, ...] = ()
    hosts: frozenset[str] | None = None
    origins: tuple[str, ...] = ()
    max_bytes: int = 8 << 20
    private: str | None = None


class Guard:
    """Lets requests pass that may."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        origin = headers.get("origin")
        try:
            self._check_host(headers)
            self._check_origin(origin)
            if origin and scope["method"] == "OPTIONS":
                await Response(status_code=204, headers=_allow(origin))(scope, receive, send)
                return
            is_private = self._access.private and scope["server"] == (self._access.private, None)
            if scope["path"] not in _OPEN_PATHS and not is_private:
                self._check_key(headers)
            body = await asyncio.wait_for(self._read_body(headers, receive), _BODY_S)
        except TimeoutError:
            await make_error_response(HttpError(408, "the body took too long to come"))(scope, receive, send)
        except HttpError as error:
            await make_error_response(error)(scope, receive, send)
        else:
            await self._app(scope, _replay(body, receive), _add_headers(send, origin))

    def _check_host(self, headers: Mapping[str, str]) -> None:
        hosts = self._access.hosts
        name = _strip_port(headers.get("host", ""))
        if hosts is not None and name.lower() not in hosts:
            raise HttpError(403, f"the host {name!r} is not one of this server", code="forbidden_host")

    def _check_origin(self, origin: str | None) -> None:
        if origin and not {origin, "*"} & set(self._access.origins):
            raise HttpError(
                403, f"pages of {origin} may not ask; --allow-origin lets them", code="forbidden_origin"
            )

    def _check_key(self, headers: Mapping[str, str]) -> None:
        if not self._access.keys:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        matches = [hmac.compare_digest(given.strip().encode(), key.encode()) for key in self._access.keys]
        if scheme.lower() != "bearer" or not any(matches):
            raise HttpError(401, "the API key is missing or wrong", code="invalid_api_key")

    async def _read_body(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        most = self._access.max_bytes
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > most:
            raise HttpError(413, f"the body has {length} bytes and may have {most}")
        parts, n_bytes = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise HttpError(400, "the body ended early")
            parts.append(message.get("body", b""))
            n_bytes += len(parts[-1])
            if n_bytes > most:
                raise HttpError(413, f"the body has more than {most} bytes")
            if not message.get("more_body"):
                return b"".join(parts)


def _strip_port(host: str) -> str:
    """`[::1]:80` and `localhost:80` without what is behind the last colon."""
    if host.startswith("["):
        return host.partition("]")[0][1:]
    return host.rpartition(":")[0] if ":" in host else host


def _replay(body: bytes, receive: Receive) -> Receive:
    """A body that was read already, then what else comes: that the client has gone."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


def _add_headers(send: Send, origin: str | None) -> Send:
    """Add what a browser wants to read of an origin that may ask."""
    if not origin:
        return send

    async def send_more(message: Message) -> None:
        if message["type"] == "http.response.start":
            extra = ((key.encode(), value.encode()) for key, value in _allow(origin).items())
            message["headers"] = [*_raw(message), *extra]
        await send(message)

    return send_more


def _raw(message: Message) -> Iterable[tuple[bytes, bytes]]:
    headers: Iterable[tuple[bytes, bytes]] = message.get("headers", ())
    return headers


def _allow(origin: str) -> dict[str, str]:
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Headers": "authorization, content-type",
        "Access-Control-Allow-Methods": "GET, POST",
        "Vary": "Origin",
    }
