"""The calls that the model asks for: show them, ask for approval, run them. Knows tools and screens."""

import json
import sys
import termios
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from m7b.generation import ToolCall
from m7b.repl.keys import restore_keys
from m7b.repl.screen import Screen
from m7b.repl.signals import raise_on_ctrl_c
from m7b.tools import Approval, Tool, Toolbox

_SHOWN = 300  # characters of a result on the screen; the model reads all of it


class Toolbelt:
    """The tools of a chat, and the rules for running them.

    Only tools that are offered run. Where the user has to approve a call, but there is no terminal to ask on,
    it does not run.

    Args:
        toolbox: runs tools.
        screen: shows calls and results.
        approval: who decides whether a call runs.
        limit: rounds of calls after which the model must answer.
    """

    def __init__(self, toolbox: Toolbox, screen: Screen, *, approval: Approval, limit: int) -> None:
        self._toolbox = toolbox
        self._screen = screen
        self._approval = approval
        self._always: set[str] = set()
        self.limit = limit
        self.is_on = True

    @property
    def tools(self) -> Sequence[Tool]:
        """All tools, whether they are offered now or not."""
        return self._toolbox.tools

    def list_offered(self) -> list[dict[str, Any]]:
        """List the tools that are offered now, in OpenAI's shape."""
        return [tool.as_json() for tool in self.tools] if self.is_on else []

    def load(self, file: Path) -> list[Tool]:
        """Offer the tools of a file.

        Raises:
            UsageError: the file cannot be used.
        """
        return self._toolbox.load(file)

    def run_calls(self, calls: Sequence[ToolCall]) -> Iterator[tuple[ToolCall, str]]:
        """Run the approved calls, one after another; yields each call with a text for the model."""
        for call in calls:
            content = self._ask_approval(call)
            if content is None:
                with raise_on_ctrl_c():
                    result = self._toolbox.call(call.name, json.loads(call.arguments))
                content = result.content
                mark = "failed" if result.is_error else "returned"
                self._screen.note(f"{call.name} {mark} in {result.seconds:.1f} s: {_clip(content)}")
            yield call, content

    def _ask_approval(self, call: ToolCall) -> str | None:
        """Decide whether a call runs: returns None if so, else the reason in words for the model."""
        source = next((tool.source for tool in self.tools if tool.name == call.name), None)
        if source is None or not self.is_on:
            self._screen.note(f"{call.name} is not offered, and was not run", "yellow")
            return f"there is no tool {call.name}"
        if self._approval is Approval.AUTO or call.name in self._always:
            return None
        if self._approval is Approval.ASK and sys.stdin is not None and sys.stdin.isatty():
            match self._ask(f"run {call.name} ({source}) with {call.arguments}? [y]es, [n]o, [a]lways: "):
                case "y" | "yes":
                    return None
                case "a" | "always":
                    self._always.add(call.name)
                    return None
        else:
            self._screen.note(f"{call.name} was not run; --tool-approval auto runs tools unasked", "yellow")
        return "the user declined this call"

    def _ask(self, question: str) -> str:
        """Ask the user; returns the answer, empty for Ctrl-C. Keys typed before the question do not count."""
        try:
            with raise_on_ctrl_c(), restore_keys():
                termios.tcflush(sys.stdin, termios.TCIFLUSH)
                self._screen.note(question, "bold")  # from here on keys count
                return sys.stdin.readline().strip().lower()
        except KeyboardInterrupt:
            return ""


def _clip(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"
