"""The commands, each imported when it is asked for: who asks a server that is warm waits for no other's."""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

COMMANDS: Mapping[str, str] = {
    "bench": "bench:bench",
    "chat": "chat:chat",
    "complete": "complete:complete",
    "doctor": "doctor:doctor",
    "download": "download:download",
    "eval": "eval:eval",
    "info": "info:info",
    "list": "list:list_",
    "perplexity": "perplexity:perplexity",
    "prune": "rm:prune",
    "quantize": "quantize:quantize",
    "rm": "rm:rm",
    "serve": "serve:serve",
    "tokenize": "tokenize:tokenize",
    "detokenize": "tokenize:detokenize",
    "verify": "verify:verify",
    "config": "config:config",
    "export": "export:export",
    "sessions": "sessions:sessions",
}
"""The module below `m7b.commands` and the name in it of each command, or group of commands."""


class LazyGroup(TyperGroup):
    """The group of all commands."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Commands()  # type: ignore[assignment] # nothing is ever added


class _Commands(Mapping[str, Any]):
    def __getitem__(self, name: str) -> Any:
        return _build(name, COMMANDS[name])

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


@cache
def _build(name: str, place: str) -> Any:
    """The command, or the group, that Typer makes of what is at `place`."""
    module, _, attribute = place.partition(":")
    found = getattr(import_module(f"m7b.commands.{module}"), attribute)
    if isinstance(found, typer.Typer):
        command: Any = typer.main.get_group(found)
        command.name = name
        return command
    alone = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    alone.command(name)(found)
    return typer.main.get_command(alone)
