"""The tools of one Python file. Knows the messages between m7b and a worker; nothing about pipes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m7b.errors import UsageError
from m7b.tools.process import Worker, WorkerLost
from m7b.tools.tool import CallOutcome, Tool, make_tool

_DESCRIPTION_LIMIT = 4_000_000  # bytes; no prompt holds as much


class PythonFile:
    """A file of functions, imported in a worker process that starts when it is needed.

    The process lives on between calls, and with it the variables of the file. It ends where a call is stopped
    or crashes it; the next call then starts a new one.

    Args:
        file: the tool file.
        start_limit: seconds that importing and describing it may take.
        time_limit: seconds that a call may take.
        output_limit: characters of an answer.
    """

    def __init__(self, file: Path, *, start_limit: float, time_limit: float, output_limit: int) -> None:
        self._file = file.absolute()
        self._start_limit = start_limit
        self._time_limit = time_limit
        self._output_limit = output_limit
        self._worker: Worker | None = None
        self._calls = 0

    def describe(self) -> list[Tool]:
        """Import the file in the worker and return its tools.

        Raises:
            UsageError: the file cannot be used; the message quotes the last line of its traceback.
        """
        name = self._file.name
        try:
            reply = self._start()
        except (WorkerLost, OSError) as error:
            raise UsageError(f"{name}: {error}", hint="it is imported to find its tools") from None
        match reply:
            case {"id": 0, "tools": [*tools]} if all(isinstance(tool, dict) for tool in tools):
                return [
                    make_tool(tool.get("name"), tool.get("description"), tool.get("parameters"), name)
                    for tool in tools
                ]
            case {"id": 0, "error": str(refusal)}:
                raise UsageError(f"{name}: {refusal}")
            case _:
                raise UsageError(f"{name}: its process wrote something that is no description")

    def call(self, name: str, arguments: Mapping[str, Any]) -> CallOutcome:
        """Call one tool; where the worker is lost, the outcome is an error that says why."""
        try:
            if self._worker is None:
                self._start()
            return self._ask(name, arguments)
        except (WorkerLost, OSError) as error:
            self.stop()
            return CallOutcome(f"{name} failed: {error}", is_error=True)
        except KeyboardInterrupt:
            self.stop()
            raise

    def stop(self) -> None:
        """End the worker, if there is one."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()

    def _start(self) -> Any:
        """Start a worker; returns its description of the file."""
        self._worker = Worker(self._file)
        return self._worker.ask(None, seconds=self._start_limit, longest=_DESCRIPTION_LIMIT)

    def _ask(self, name: str, arguments: Mapping[str, Any]) -> CallOutcome:
        assert self._worker is not None
        self._calls += 1
        limit = self._output_limit
        request = {"id": self._calls, "name": name, "arguments": json.dumps(arguments), "limit": limit}
        longest = 12 * limit + 1_000  # JSON writes a character in at most 12 bytes: \ud83d\ude00
        reply = self._worker.ask(request, seconds=self._time_limit, longest=longest)
        match reply:
            case {
                "id": self._calls,
                "content": str(content),
                "is_error": bool(failed),
                "left_out": int(left_out),
            }:
                return CallOutcome(content, failed, left_out)
            case _:
                raise self._worker.give_up("its process wrote something that is no answer")
