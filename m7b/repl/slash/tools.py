"""Slash commands about tools."""

from typing import TYPE_CHECKING

from m7b.errors import UsageError
from m7b.paths import parse_path
from m7b.repl.slash.registry import Argument, command
from m7b.tools import Tool

if TYPE_CHECKING:
    from m7b.repl.chat import Chat


@command("tools", usage="[on|off|load FILE]", argument=Argument.TOOLS)
def change_tools(chat: "Chat", argument: str) -> None:
    """List the tools, offer them or not, or load more from a .py or .json file."""
    belt = chat.toolbelt
    action, _, rest = argument.partition(" ")
    match action:
        case "" | "list":
            if not belt.tools:
                chat.screen.note("there are no tools; /tools load FILE.py brings some")
            chat.screen.show_table((tool.name, _describe(tool)) for tool in belt.tools)
            if belt.tools and not belt.is_on:
                chat.screen.note("they are not offered; /tools on offers them")
        case "on" | "off":
            belt.is_on = action == "on"
            chat.offer_tools()
            chat.screen.note(f"tools are {'offered' if belt.is_on else 'not offered'}")
        case "load" if rest.strip():
            loaded = belt.load(parse_path(rest.strip()))
            chat.offer_tools()
            chat.screen.note(f"offered: {', '.join(tool.name for tool in loaded)}")
        case _:
            raise UsageError(f"/tools does not take {argument!r}", hint="write /tools, on, off, or load FILE")


def _describe(tool: Tool) -> str:
    """The first line of what it does, and where it is from."""
    return f"{tool.description.partition(chr(10))[0]} ({tool.source})"
