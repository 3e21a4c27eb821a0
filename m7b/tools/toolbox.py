"""All tools that are offered, and the one place that calls them.

Knows the source of each tool; nothing about who asked for a call or who allowed it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from m7b.errors import UsageError
from m7b.tools.json_file import load_json_tools
from m7b.tools.mcp_config import load_entries, parse_config
from m7b.tools.mcp_tools import keep_served, name_tools
from m7b.tools.python_file import PythonFile
from m7b.tools.tool import CallOutcome, Tool, ToolResult, explain_unreadable, format_content

if TYPE_CHECKING:
    from m7b.tools.servers import Server, Servers

_Call = Callable[[Mapping[str, Any]], CallOutcome]


class Toolbox:
    """The tools of files and servers. A context manager: at its end it stops every process that it started.

    Tools run with the user's rights, environment and working directory: nothing here is a sandbox.

    Args:
        time_limit: seconds that a call may take.
        output_limit: characters of a result; a longer one is cut, and ends in a line that says so.
        start_limit: seconds that a file may take to be imported, and a server to start and list its tools.
    """

    def __init__(
        self, *, time_limit: float = 30.0, output_limit: int = 16_384, start_limit: float = 30.0
    ) -> None:
        self._time_limit = time_limit
        self._output_limit = output_limit
        self._start_limit = start_limit
        self._tools: dict[str, tuple[Tool, _Call]] = {}
        self._open = ExitStack()
        self._servers: Servers | None = None
        self._left_out: list[UsageError] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    @property
    def tools(self) -> Sequence[Tool]:
        """The tools that are offered, in the order in which they were loaded."""
        return [tool for tool, _ in self._tools.values()]

    @property
    def left_out(self) -> Sequence[UsageError]:
        """Why servers, or tools of theirs, were left out."""
        return list(self._left_out)

    def load(self, file: Path) -> list[Tool]:
        """Offer the functions of a .py file, imported in a process of its own, or the tools of a .json file.

        Raises:
            UsageError: the file cannot be used; nothing of it is offered.
        """
        if not file.is_file():
            raise UsageError(f"{file}: no such file", hint="tools are in .py or .json files")
        match file.suffix:
            case ".py":
                return self._load_python(file)
            case ".json":
                return self._add([(tool, partial(_refuse_call, tool)) for tool in load_json_tools(file)])
            case _:
                raise UsageError(f"{file}: tools are in .py or .json files")

    def load_mcp(self, config: Path, *, is_strict: bool = True, is_enforced: bool = False) -> list[Tool]:
        """Start the servers of `{"mcpServers": {name: {"command": …}}}`, or reach those with a `url`.

        Their tools are offered. What cannot be used, a server or one of its tools, is an error where
        `is_strict`, else left out; see `left_out`. With `is_enforced`, that goes for a tool whose calls
        cannot be kept valid.

        Raises:
            UsageError: the file cannot be used; nothing of it is offered.
        """
        entries = load_entries(config)
        taken = {tool.name: tool.source for tool in self.tools}
        with ExitStack() as undo:
            servers, faults = self._start_servers(config, entries, undo, is_strict=is_strict)
            served, clashes = name_tools(servers, taken)
            faults += clashes
            if is_enforced:
                served, unenforceable = keep_served(served)
                faults += unenforceable
            if is_strict and faults:
                raise faults[0]
            added = self._add([(each.tool, partial(each.server.call, each.theirs)) for each in served])
            self._open.push(undo.pop_all())
        self._left_out += faults
        return added

    def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Call a tool that is offered; returns a result whatever the tool does.

        Ctrl+C (KeyboardInterrupt) stops the tool, and the result says so.
        """
        start = time.monotonic()
        answer = self._run_call(name, arguments)
        content = format_content(answer, self._output_limit)
        refusal = explain_unreadable(content)
        if refusal:
            answer, content = CallOutcome("", is_error=True), f"{name} returned {refusal}"
        return ToolResult(content, answer.is_error, time.monotonic() - start)

    def close(self) -> None:
        """Stop every worker and server; then no tool is offered any more."""
        self._tools.clear()
        self._servers = None
        self._open.close()

    def _start_servers(
        self, config: Path, entries: Mapping[str, Any], undo: ExitStack, *, is_strict: bool
    ) -> "tuple[list[Server], list[UsageError]]":
        """Start servers that `undo` stops; returns them, and what is wrong with the others and with tools."""
        from m7b.tools.servers import Servers

        if self._servers is None:
            self._servers = Servers(start_limit=self._start_limit, time_limit=self._time_limit)
            self._open.callback(self._servers.stop)
        started: list[Server] = []
        faults: list[UsageError] = []
        for name, entry in entries.items():
            try:
                server = self._servers.start(parse_config(config, name, entry))
            except UsageError as error:
                if is_strict:
                    raise
                faults.append(error)
            else:
                undo.callback(server.stop)
                started.append(server)
                faults += server.faults
        return started, faults

    def _run_call(self, name: str, arguments: Mapping[str, Any]) -> CallOutcome:
        if name not in self._tools:
            offered = ", ".join(self._tools) or "none"
            return CallOutcome(f"there is no tool {name}; there are: {offered}", is_error=True)
        _, call = self._tools[name]
        try:
            return call(arguments)
        except KeyboardInterrupt:
            return CallOutcome("stopped by the user", is_error=True)

    def _load_python(self, file: Path) -> list[Tool]:
        python_file = PythonFile(
            file,
            start_limit=self._start_limit,
            time_limit=self._time_limit,
            output_limit=self._output_limit,
        )
        with ExitStack() as undo:
            undo.callback(python_file.stop)
            added = self._add(
                [(tool, partial(python_file.call, tool.name)) for tool in python_file.describe()]
            )
            self._open.push(undo.pop_all())
        return added

    def _add(self, tools: Sequence[tuple[Tool, _Call]]) -> list[Tool]:
        """Offer all of `tools`, or none where a name is taken."""
        offered = dict(self._tools)
        for tool, call in tools:
            if tool.name in offered:
                other = offered[tool.name][0].source
                raise UsageError(
                    f"{other} and {tool.source} both offer {tool.name}",
                    hint="rename one of them or leave one out",
                )
            offered[tool.name] = (tool, call)
        self._tools = offered
        return [tool for tool, _ in tools]


def _refuse_call(tool: Tool, arguments: Mapping[str, Any]) -> CallOutcome:
    return CallOutcome(f"{tool.name} is described in {tool.source}, which holds no code", is_error=True)
