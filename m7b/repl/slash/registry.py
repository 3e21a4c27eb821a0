"""The registry of slash commands: their names and arguments, and the search for one by name."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from m7b.errors import UsageError

if TYPE_CHECKING:
    from m7b.repl.chat import Chat

Run = Callable[["Chat", str], None]


class Argument(Enum):
    """The kind of a command's argument, by which Tab completes it."""

    NONE = auto()
    COMMAND = auto()
    PARAMETER = auto()
    TOPIC = auto()
    SIDE = auto()
    PATH = auto()
    CONVERSATION = auto()
    MODEL = auto()
    TOOLS = auto()
    THEME = auto()


@dataclass(frozen=True, slots=True)
class Command:
    """One slash command."""

    names: tuple[str, ...]
    usage: str
    help: str
    argument: Argument
    run: Run

    @property
    def synopsis(self) -> str:
        """How to type it."""
        return f"/{self.names[0]} {self.usage}".rstrip()


COMMANDS: list[Command] = []
"""Every command, in the order of /help."""


def command(*names: str, usage: str = "", argument: Argument = Argument.NONE) -> Callable[[Run], Run]:
    """Register a function as a command; the first line of its docstring is its help."""

    def register(run: Run) -> Run:
        COMMANDS.append(Command(names, usage, (run.__doc__ or "").splitlines()[0], argument, run))
        return run

    return register


def find_command(name: str) -> Command:
    """Find the command called `name`.

    Raises:
        UsageError: there is none; the hint is the nearest name.
    """
    known = {alias: entry for entry in COMMANDS for alias in entry.names}
    if name in known:
        return known[name]
    near = [other for other in known if name and other.startswith(name)]
    near = near or difflib.get_close_matches(name, known, n=1)
    way_out = f"did you mean /{near[0]}?" if near else "/? lists them."
    raise UsageError(f"there is no command /{name}", hint=f"{way_out} // at the beginning sends it as text")
