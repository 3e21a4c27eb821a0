"""Ways to a Model Context Protocol server, on the SDK's transports: a process of ours, or a URL.

Knows pipes, proxies and certificates; nothing about what the messages say, but for the list of tools.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from http.client import responses
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO, assert_never

from m7b.errors import UsageError
from m7b.network import find_proxy, make_tls_context, name_proxy
from m7b.tools.mcp_config import ProcessConfig, ServerConfig, UrlConfig
from m7b.tools.mcp_tools import check_entry
from m7b.tools.tool import find_last_line

if TYPE_CHECKING:
    import httpx2
    from mcp.client._transport import ReadStream, TransportStreams
    from mcp.shared.message import SessionMessage

_TAIL = 4_096  # bytes kept of a server's stderr
_PATIENCE = 30.0  # seconds for a connection; calls have limits of their own
_SILENCE = 300.0  # seconds between two pieces of an answer


@dataclass(slots=True)
class Trace:
    """What is known of a server: its last words on stderr, its last HTTP status, tools that were refused."""

    source: str
    tail: bytes = b""
    status: int = 200
    faults: list[UsageError] = field(default_factory=list)

    def describe(self) -> str:
        """Describe what the server said beside the protocol, empty where it was silent."""
        if self.status >= 400:
            return f"it answers {self.status} {responses.get(self.status, '')}".strip()
        printed = find_last_line(self.tail)
        return f"the last it printed: {printed}" if printed else ""


def check_way(config: ServerConfig) -> None:
    """See that there is a way to a server that is reached over the network.

    Raises:
        UsageError: a variable of the environment makes no sense, or its proxy speaks what we do not.
    """
    if isinstance(config, UrlConfig):
        make_tls_context()
        proxy = find_proxy(config.url)
        if proxy and proxy.startswith("socks"):
            _require_socks(proxy)


@contextlib.asynccontextmanager
async def open_transport(config: ServerConfig, trace: Trace) -> "AsyncIterator[TransportStreams]":
    """Open the streams of messages from and to a server."""
    match config:
        case ProcessConfig():
            opened = _open_process(config, trace)
        case UrlConfig():
            opened = _open_url(config, trace)
        case _:
            assert_never(config)
    async with opened as (read, write):
        yield _Sieve(read, trace), write


@contextlib.asynccontextmanager
async def _open_process(config: ProcessConfig, trace: Trace) -> "AsyncIterator[TransportStreams]":
    from mcp.client.stdio import StdioServerParameters, stdio_client

    process = StdioServerParameters(
        command=config.command, args=list(config.args), env=dict(config.env), cwd=config.cwd
    )
    with _open_stderr(trace) as stderr:
        async with stdio_client(process, errlog=stderr) as streams:
            yield streams


@contextlib.asynccontextmanager
async def _open_url(config: UrlConfig, trace: Trace) -> "AsyncIterator[TransportStreams]":
    from mcp.client.sse import sse_client
    from mcp.client.streamable_http import streamable_http_client

    async with contextlib.AsyncExitStack() as stack:
        if config.is_sse:
            make = _make_client_factory(config, trace)
            yield await stack.enter_async_context(sse_client(config.url, httpx_client_factory=make))
        else:
            client = await stack.enter_async_context(_make_client_factory(config, trace)())
            yield await stack.enter_async_context(streamable_http_client(config.url, http_client=client))


def _make_client_factory(config: UrlConfig, trace: Trace) -> "Callable[..., httpx2.AsyncClient]":
    """Make what makes the SDK's HTTP client: it goes by the proxies and certificates of `m7b.network`."""
    import httpx2

    async def note_status(answer: httpx2.Response) -> None:
        trace.status = answer.status_code

    def make(**_: Any) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            headers=dict(config.headers),
            timeout=httpx2.Timeout(_PATIENCE, read=_SILENCE),
            verify=make_tls_context(),
            proxy=find_proxy(config.url),
            trust_env=False,
            event_hooks={"response": [note_status]},
        )

    return make


def _require_socks(proxy: str) -> None:
    try:
        import socksio  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        raise UsageError(
            f"the proxy {name_proxy(proxy)} speaks SOCKS, which needs socksio for MCP servers",
            hint="pip install socksio, or name the server's host in no_proxy",
        ) from None


@contextlib.contextmanager
def _open_stderr(trace: Trace) -> Iterator[TextIO]:
    """Open a file for the server's stderr; its last bytes are kept for errors, nothing is shown."""
    loop = asyncio.get_running_loop()
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    loop.add_reader(reader, _read_stderr, reader, trace)
    try:
        with os.fdopen(writer, "w") as stderr:
            yield stderr
    finally:
        loop.remove_reader(reader)
        for _ in range(16):
            _read_stderr(reader, trace)
        os.close(reader)


def _read_stderr(reader: int, trace: Trace) -> None:
    with contextlib.suppress(BlockingIOError):
        trace.tail = (trace.tail + os.read(reader, 65_536))[-_TAIL:]


class _Sieve:
    """Passes messages on, without the tools for which the SDK would refuse the whole list of them."""

    def __init__(self, stream: "ReadStream[SessionMessage | Exception]", trace: Trace) -> None:
        self._stream = stream
        self._trace = trace

    @property
    def last_context(self) -> Any:
        """What the SDK asks of its own streams."""
        return getattr(self._stream, "last_context", None)

    async def receive(self) -> "SessionMessage | Exception":
        return self._sift(await self._stream.receive())

    async def aclose(self) -> None:
        await self._stream.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> "SessionMessage | Exception":
        return self._sift(await self._stream.__anext__())

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> bool | None:
        return await self._stream.__aexit__(kind, error, where)

    def _sift(self, item: "SessionMessage | Exception") -> "SessionMessage | Exception":
        result = None if isinstance(item, Exception) else getattr(item.message, "result", None)
        tools = result.get("tools") if isinstance(result, dict) else None
        if isinstance(result, dict) and isinstance(tools, list):
            result["tools"] = [kept for entry in tools if (kept := self._check(entry)) is not None]
        return item

    def _check(self, entry: Any) -> dict[str, Any] | None:
        try:
            return check_entry(entry, self._trace.source)
        except UsageError as fault:
            self._trace.faults.append(fault)
            return None
