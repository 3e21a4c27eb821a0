"""Slash commands that change how the model answers: system prompt, parameters, model, keys, tools."""

from typing import TYPE_CHECKING

from m7b.errors import UsageError
from m7b.paths import parse_path
from m7b.render import Theme
from m7b.repl.background import resolve_theme
from m7b.repl.parameters import PARAMETERS, change_params, parse_assignments
from m7b.repl.slash.registry import Argument, command
from m7b.session import OnFull
from m7b.tools import Tool

if TYPE_CHECKING:
    from m7b.repl.chat import Chat

_OFF = ("off", "none", '""', "''")


@command("system", usage="[TEXT|off]")
def change_system(chat: "Chat", argument: str) -> None:
    """Show, set or remove the system prompt."""
    if argument:
        chat.session.system = "" if argument in _OFF else argument
        chat.autosaver.save(chat.session)
    chat.screen.note(chat.session.system or "there is no system prompt")


@command("set", usage="NAME VALUE", argument=Argument.PARAMETER)
def set_parameters(chat: "Chat", argument: str) -> None:
    """Set a parameter: NAME VALUE, parameter NAME VALUE, or NAME=VALUE ...; alone, show all."""
    if not argument:
        show_parameters(chat)
        return
    pairs = parse_assignments(argument)
    if pairs[0][0] == "system":
        change_system(chat, pairs[0][1])
        return
    on_full = [value for name, value in pairs if name.replace("-", "_") == "on_full"]
    if wrong := [value for value in on_full if value not in tuple(OnFull)]:
        raise UsageError(f"on_full is {wrong[0]!r}", hint=f"it can be {', '.join(OnFull)}")
    chat.session.params = change_params(
        chat.session.params, [pair for pair in pairs if pair[0].replace("-", "_") != "on_full"]
    )
    if on_full:
        chat.session.on_full = OnFull(on_full[-1])
    chat.screen.note("  ".join(f"{name} = {value}" for name, value in pairs))


def show_parameters(chat: "Chat") -> None:
    """Show every parameter with its value."""
    params = chat.session.params
    rows = [(name, str(getattr(params, name))) for name in PARAMETERS]
    chat.screen.show_table([*rows, ("on_full", chat.session.on_full)])


@command("model", usage="[NAME|PATH]", argument=Argument.MODEL)
def change_model(chat: "Chat", argument: str) -> None:
    """Show the model, or carry on with another."""
    session = chat.session
    if argument:
        session.model = chat.open_model(argument)
        session.load(session.messages)  # the new model sees all messages again
        chat.autosaver.save(session)
    chat.screen.note(f"{session.model.name}: {session.model.ctx_size} tokens of context")
    if argument:
        chat.offer_tools()


@command("multiline")
def toggle_multiline(chat: "Chat", argument: str) -> None:
    """Let Enter begin a new line and Alt+Enter send, or the other way round again."""
    chat.is_multiline = not chat.is_multiline
    chat.screen.note("Alt+Enter sends" if chat.is_multiline else "Enter sends")


@command("theme", usage="auto|light|dark|none", argument=Argument.THEME)
def change_theme(chat: "Chat", argument: str) -> None:
    """Show or change the colours: for the terminal's background, a light or a dark one, or none."""
    if argument and argument not in tuple(Theme):
        raise UsageError(f"there is no theme {argument!r}", hint=f"they are {', '.join(Theme)}")
    if argument:
        chat.screen.theme = resolve_theme(Theme(argument))
    chat.screen.note(f"the theme is {chat.screen.theme}")


@command("tools", usage="[on|off|load FILE]", argument=Argument.TOOLS)
def change_tools(chat: "Chat", argument: str) -> None:
    """List the tools, offer them or not, or load more from a .py or .json file."""
    belt = chat.toolbelt
    action, _, rest = argument.partition(" ")
    match action:
        case "" | "list":
            if not belt.tools:
                chat.screen.note("there are no tools; /tools load FILE.py brings some")
            chat.screen.show_table((tool.name, _describe_tool(tool)) for tool in belt.tools)
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


def _describe_tool(tool: Tool) -> str:
    """Return the first line of the description, and the source."""
    return f"{tool.description.partition(chr(10))[0]} ({tool.source})"
