"""Model Context Protocol servers, through the official SDK: the one module with an event loop.

Knows the protocol's words for tools and results; nothing about other tools. The loop runs in a thread of
its own; callers wait for it, and Ctrl+C reaches them.
"""

import asyncio
import logging
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import CancelledError
from dataclasses import replace
from typing import TYPE_CHECKING, Any, assert_never

from m7b.errors import UsageError
from m7b.tools.mcp_config import ProcessConfig, ServerConfig, UrlConfig
from m7b.tools.mcp_tools import convert_result
from m7b.tools.tool import CallOutcome
from m7b.tools.transports import Trace, check_way, open_transport
from m7b.version import __version__

if TYPE_CHECKING:
    import mcp_types
    from mcp.client.client import Client

_MOST_TOOLS = 1_000  # of one server; a list without end is no list
_GOODBYE = 10.0  # seconds for a server to end; the SDK kills it after four


class Server:
    """One server, which `start` starts. `listed` are its tools as the server names them.

    `faults` tells of those that cannot be offered, whatever they are called.
    """

    def __init__(self, config: ServerConfig, loop: asyncio.AbstractEventLoop, *, time_limit: float) -> None:
        self.name = config.name
        self.source = f"mcp:{config.name}"
        self.listed: list[mcp_types.Tool] = []
        self._config = config
        self._loop = loop
        self._time_limit = time_limit
        self._client: Client | None = None
        self._task: asyncio.Task[None] | None = None
        self._leave = asyncio.Event()
        self._trace = Trace(self.source)

    @property
    def faults(self) -> list[UsageError]:
        """The errors of tools that cannot be offered."""
        return self._trace.faults

    def start(self, seconds: float) -> None:
        """Connect to the server, agree on a version and list the tools.

        Raises:
            UsageError: that failed or took longer than `seconds`, or there are no tools; it has ended.
        """
        check_way(self._config)
        error = self._wait(self._begin(seconds), seconds + _GOODBYE)
        if isinstance(self._config, UrlConfig) and self._may_be_sse(error):
            first = self._trace
            self._config, self._trace = replace(self._config, is_sse=True), Trace(self.source)
            if (second := self._wait(self._begin(seconds), seconds + _GOODBYE)) is not None:
                self._trace = first
            error = second and error
        if error is not None:
            raise _explain(self._config, self._trace, error)
        if not self.listed and not self.faults:
            self.stop()
            raise UsageError(f"{self.source}: the server offers no tools")

    def call(self, name: str, arguments: Mapping[str, Any]) -> CallOutcome:
        """Call the tool that the server calls `name`."""
        assert self._client is not None
        answers: list[CallOutcome] = []
        error = self._wait(self._ask(self._client, name, arguments, answers), self._time_limit)
        if error is None:
            return answers[0]
        return CallOutcome(f"{name} failed: {_format_error(error)}", is_error=True)

    def stop(self) -> None:
        """End the server."""
        self._wait(self._end(), 2 * _GOODBYE)

    def _may_be_sse(self, error: BaseException | None) -> bool:
        """Whether the URL may be one of the older way, by how it refuses the newer one."""
        is_open = isinstance(self._config, UrlConfig) and self._config.is_sse is None
        return is_open and error is not None and self._trace.status in (400, 404, 405)

    def _wait(self, work: Coroutine[Any, Any, None], seconds: float) -> BaseException | None:
        """Run `work` on the loop and wait for it; returns its error, None where it succeeded.

        Where the wait ends early, by time or by Ctrl+C, the work is cancelled.
        """
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.exception(seconds)
        except TimeoutError:
            return TimeoutError(f"it took longer than {seconds:g} seconds")
        except CancelledError:
            return ConnectionError("the server has ended")
        finally:
            future.cancel()

    async def _begin(self, seconds: float) -> None:
        ready = asyncio.Event()
        self._task = asyncio.create_task(self._serve(ready))
        is_ready = asyncio.create_task(ready.wait())
        try:
            await asyncio.wait((self._task, is_ready), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            is_ready.cancel()
            if not ready.is_set():
                is_late = not self._task.done()
                self._task.cancel()
                await asyncio.wait((self._task,), timeout=_GOODBYE)
        if not ready.is_set():
            if is_late:
                raise TimeoutError(f"it took longer than {seconds:g} seconds")
            self._task.result()

    async def _serve(self, ready: asyncio.Event) -> None:
        """Open the connection, hold it, and close it: the SDK needs all of that in one task."""
        import mcp_types
        from mcp.client.client import Client

        us = mcp_types.Implementation(name="m7b", version=__version__)
        transport = open_transport(self._config, self._trace)
        async with Client(transport, client_info=us, cache=None) as client:
            self.listed = await _list_tools(client)
            self._client = client
            ready.set()
            await self._leave.wait()

    async def _ask(
        self, client: "Client", name: str, arguments: Mapping[str, Any], answers: list[CallOutcome]
    ) -> None:
        answers.append(convert_result(await client.call_tool(name, dict(arguments))))

    async def _end(self) -> None:
        self._leave.set()
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=_GOODBYE)
            self._task.cancel()  # it still waits for an answer to its goodbye


class Servers:
    """The servers of one toolbox and the thread that talks to them."""

    def __init__(self, *, start_limit: float, time_limit: float) -> None:
        import mcp.client.client  # noqa: F401 - takes a second, which must not count against a server

        for name in ("mcp", "client"):  # the SDK's loggers; a logger without handlers writes to stderr
            logging.getLogger(name).addHandler(logging.NullHandler())
        self._start_limit = start_limit
        self._time_limit = time_limit
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda loop, context: None)  # the call itself reports errors
        self._thread = threading.Thread(target=self._loop.run_forever, name="m7b-mcp", daemon=True)
        self._thread.start()

    def start(self, config: ServerConfig) -> Server:
        """Start the server of `config`.

        Raises:
            UsageError: it does not start.
        """
        server = Server(config, self._loop, time_limit=self._time_limit)
        server.start(self._start_limit)
        return server

    def stop(self) -> None:
        """End the thread, after the servers that were stopped have ended."""
        asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _finish(self) -> None:
        """Wait for tasks that Ctrl+C has cancelled and that have not ended yet."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=_GOODBYE)


async def _list_tools(client: "Client") -> "list[mcp_types.Tool]":
    """List the tools of all pages; there are none where the server knows no such list."""
    from mcp.shared.exceptions import MCPError
    from mcp_types import METHOD_NOT_FOUND

    tools: list[mcp_types.Tool] = []
    cursor: str | None = None
    while True:
        try:
            page = await client.list_tools(cursor=cursor)
        except MCPError as error:
            if error.code == METHOD_NOT_FOUND and client.server_capabilities.tools is None:
                return []
            raise
        tools += page.tools
        cursor = page.next_cursor
        if cursor is None:
            return tools
        if len(tools) > _MOST_TOOLS:
            raise ConnectionError(f"it lists more than {_MOST_TOOLS} tools")


def _explain(config: ServerConfig, trace: Trace, error: BaseException) -> UsageError:
    """Make the error for a server that did not start."""
    beside = trace.describe()
    match config:
        case ProcessConfig():
            return UsageError(
                f"mcp:{config.name}: the server did not start: {_format_error(error)}"
                + (f"; {beside}" if beside else ""),
                hint=f"try its command: {config.shown}",
            )
        case UrlConfig():
            hint = "see its address, and that it runs"
            if trace.status in (401, 403):
                hint = 'give it the "headers" that it asks for, such as {"Authorization": "Bearer …"}'
            return UsageError(
                f"mcp:{config.name}: no connection to {config.shown}: {beside or _format_error(error)}",
                hint=hint,
            )
        case _:
            assert_never(config)


def _format_error(error: BaseException) -> str:
    """Format the innermost error of a group as one line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error) or type(error).__name__
