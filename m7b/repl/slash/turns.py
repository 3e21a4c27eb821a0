"""Slash commands that change_params what was said: begin anew, answer anew, go on, take back, edit."""

from typing import TYPE_CHECKING

from m7b.editor import edit_text
from m7b.errors import UsageError
from m7b.repl.keys import restore_keys
from m7b.repl.parameters import change_params, parse_assignments
from m7b.repl.slash.registry import Argument, command

if TYPE_CHECKING:
    from m7b.repl.chat import Chat


_DIGITS = 10  # of the longest number of turns


@command("clear", "new")
def clear(chat: "Chat", argument: str) -> None:
    """Begin a new conversation; the system prompt stays, and the old one stays in the store."""
    chat.session.clear()
    chat.attached.clear()
    chat.autosaver.begin()
    chat.screen.note("a new conversation")


@command("regen", "retry", usage="[NAME=VALUE ...]", argument=Argument.PARAMETER)
def regenerate(chat: "Chat", argument: str) -> None:
    """Answer the last message anew, perhaps with other parameters for this once."""
    params = change_params(chat.session.params, parse_assignments(argument)) if argument else None
    chat.show(chat.session.regenerate(params))


@command("continue")
def go_on(chat: "Chat", argument: str) -> None:
    """Go on with the last answer where it ended."""
    chat.show(chat.session.continue_answer(), continues=True)


@command("undo", usage="[N]")
def undo(chat: "Chat", argument: str) -> None:
    """Take back the last turn, or the last N."""
    if argument and not (argument.isdecimal() and len(argument) < _DIGITS):
        raise UsageError(f"{argument!r} is no number of turns", hint="write /undo 2")
    taken = chat.session.undo(int(argument or 1))
    chat.autosaver.save(chat.session)
    asked = [message.text for message in taken if message.role == "user"]
    chat.screen.note(
        f"took back {len(asked)} {'turn' if len(asked) == 1 else 'turns'}, from: {_shorten(asked[0])}"
    )


@command("edit", usage="[user|answer]", argument=Argument.SIDE)
def edit(chat: "Chat", argument: str) -> None:
    """Edit your last message in your editor and send it again, or edit the last answer."""
    match argument:
        case "" | "user":
            _edit_message(chat)
        case "answer":
            _edit_answer(chat)
        case _:
            raise UsageError(f"there is no {argument!r} to edit", hint="write /edit user or /edit answer")


def _edit_message(chat: "Chat") -> None:
    before = chat.session.find_last("user").text
    text = _edit_outside(before)
    if not text.strip() or text == before:
        chat.screen.note("nothing changed")
        return
    chat.screen.note(f">>> {text}")
    chat.ask(chat.session.regenerate(text=text), draft=text)


def _edit_answer(chat: "Chat") -> None:
    before = chat.session.find_last("assistant").text
    text = _edit_outside(before)
    if text == before:
        chat.screen.note("nothing changed")
        return
    chat.session.replace_answer(text)
    chat.autosaver.save(chat.session)
    chat.screen.note("the answer is replaced; /continue goes on from it")


def _edit_outside(text: str) -> str:
    with restore_keys():
        return edit_text(text)


def _shorten(text: str, n_characters: int = 60) -> str:
    """Return the beginning of `text` as one line."""
    line = " ".join(text.split())
    return line if len(line) <= n_characters else f"{line[:n_characters]}…"
