"""Slash commands: help and the way out."""

from typing import TYPE_CHECKING

from m7b.repl.slash.registry import COMMANDS, Argument, command, find_command

if TYPE_CHECKING:
    from m7b.repl.chat import Chat

_KEYS = (
    ("Enter", "sends; Alt+Enter, Shift+Enter and Ctrl+J begin a new line"),
    ('"""', "begins and ends a message of several lines"),
    ("//text", "sends /text to the model"),
    ("Ctrl+C", "stops an answer and keeps it; at the prompt clears the line"),
    ("Ctrl+G", "opens the message in your editor, as Ctrl+X Ctrl+E does"),
    ("Ctrl+R", "searches the history"),
    ("Tab", "completes commands, parameters and paths"),
    ("Ctrl+D", "ends the chat"),
)


@command("help", "?", usage="[COMMAND]", argument=Argument.COMMAND)
def show_help(chat: "Chat", argument: str) -> None:
    """List the commands and keys, or explain one command."""
    if argument:
        entry = find_command(argument.removeprefix("/"))
        chat.screen.note(f"{entry.synopsis}\n  {entry.help}")
        if aliases := entry.names[1:]:
            chat.screen.note(f"  also {', '.join(f'/{name}' for name in aliases)}")
        return
    chat.screen.show_table((entry.synopsis, entry.help) for entry in COMMANDS)
    chat.screen.note()
    chat.screen.show_table(_KEYS)


@command("bye", "exit", "quit")
def end_chat(chat: "Chat", argument: str) -> None:
    """End the chat."""
    chat.is_over = True
