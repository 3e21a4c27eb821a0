"""Model Context Protocol servers over stdio, through the official SDK: the one module with an event loop.

Knows the protocol's words for tools and results; nothing about other tools. The loop runs in a thread of
its own; callers wait for it, and Ctrl+C reaches them.
"""

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, TextIO

from m7b.errors import UsageError
from m7b.tools.mcp_config import ServerConfig
from m7b.tools.mcp_tools import convert_result
from m7b.tools.tool import CallOutcome, find_last_line
from m7b.version import __version__

if TYPE_CHECKING:
    import mcp_types
    from mcp.client.client import Client

_MOST_TOOLS = 1_000  # of one server; a list without end is no list
_GOODBYE = 10.0  # seconds for a server to end; the SDK kills it after four
_TAIL = 4_096  # bytes kept of a server's stderr


class Server:
    """One server, which `start` starts. `listed` are its tools as the server names them."""

    def __init__(self, config: ServerConfig, loop: asyncio.AbstractEventLoop, *, time_limit: float) -> None:
        self.name = config.name
        self.listed: list[mcp_types.Tool] = []
        self._config = config
        self._loop = loop
        self._time_limit = time_limit
        self._client: Client | None = None
        self._task: asyncio.Task[None] | None = None
        self._leave = asyncio.Event()
        self._tail = b""

    def start(self, seconds: float) -> None:
        """Start the process, agree on a version and list the tools.

        Raises:
            UsageError: that failed or took longer than `seconds`; the process has ended.
        """
        error = self._wait(self._begin(seconds), seconds + _GOODBYE)
        if error is not None:
            printed = find_last_line(self._tail)
            raise UsageError(
                f"mcp:{self.name}: the server did not start: {_format_error(error)}"
                + (f"; the last it printed: {printed}" if printed else ""),
                hint=f"try its command: {' '.join((self._config.command, *self._config.args))}",
            )

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
        from mcp.client.stdio import StdioServerParameters, stdio_client

        config = self._config
        process = StdioServerParameters(
            command=config.command, args=list(config.args), env=dict(config.env), cwd=config.cwd
        )
        us = mcp_types.Implementation(name="m7b", version=__version__)
        with self._open_stderr() as stderr:
            async with Client(stdio_client(process, errlog=stderr), client_info=us, cache=None) as client:
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

    @contextlib.contextmanager
    def _open_stderr(self) -> Iterator[TextIO]:
        """Open a file for the server's stderr; its last bytes are kept for errors, nothing is shown."""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        self._loop.add_reader(reader, self._read_stderr, reader)
        try:
            with os.fdopen(writer, "w") as stderr:
                yield stderr
        finally:
            self._loop.remove_reader(reader)
            for _ in range(16):
                self._read_stderr(reader)
            os.close(reader)

    def _read_stderr(self, reader: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._tail = (self._tail + os.read(reader, 65_536))[-_TAIL:]


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
    tools: list[mcp_types.Tool] = []
    cursor: str | None = None
    while True:
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if cursor is None:
            return tools
        if len(tools) > _MOST_TOOLS:
            raise ConnectionError(f"it lists more than {_MOST_TOOLS} tools")


def _format_error(error: BaseException) -> str:
    """Format the innermost error of a group as one line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
