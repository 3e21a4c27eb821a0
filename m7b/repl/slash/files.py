"""Slash commands between the conversation and everything outside it: files, the store, the clipboard."""

import shlex
from typing import TYPE_CHECKING

from m7b.errors import UsageError
from m7b.export import choose_format, format_export, write_export
from m7b.paths import parse_path
from m7b.repl.clipboard import copy_in_tmux, format_copy
from m7b.repl.slash.registry import Argument, command
from m7b.text_input import read_text

if TYPE_CHECKING:
    from m7b.repl.chat import Chat
    from m7b.store import Store, StoredConversation


@command("read", usage="FILE|off", argument=Argument.PATH)
def read(chat: "Chat", argument: str) -> None:
    """Put the text of a file in front of your next message; off takes all of them away again."""
    if not argument:
        raise UsageError("no file is named", hint="write /read notes.txt")
    if argument == "off":
        chat.attached.clear()
        return
    file = parse_path(argument)
    if file.exists() and not file.is_file():
        raise UsageError(f"{file} is no regular file", hint="name another")
    chat.attached[file] = text = read_text(file)
    n_tokens = len(chat.session.model.tokenizer.encode(text, bos=False))
    chat.screen.note(f"{file}: {n_tokens} tokens, in front of your next message")


@command("save", usage="NAME")
def save(chat: "Chat", argument: str) -> None:
    """Give the conversation a name, to find it by."""
    if not argument:
        raise UsageError("no name is given", hint="write /save recipes")
    store, id = _require_conversation(chat)
    store.rename(id, argument)
    chat.screen.note(f"m7b chat --session {shlex.quote(argument)} carries on with it")


@command("load", usage="ID|NAME", argument=Argument.CONVERSATION)
def load(chat: "Chat", argument: str) -> None:
    """Carry on with another conversation."""
    store = _require_store(chat)
    conversation = store.find(argument)
    messages = store.load_messages(conversation.id)
    chat.session.load(messages)
    chat.attached.clear()
    chat.autosaver.begin(conversation, messages)
    show_last_turn(chat, conversation)


@command("sessions", usage="[TEXT]")
def list_sessions(chat: "Chat", argument: str) -> None:
    """List the conversations, or those that hold TEXT."""
    store = _require_store(chat)
    found = store.list_conversations()
    if argument:
        ids = {conversation.id for conversation, _, _ in store.search(argument)}
        found = [conversation for conversation in found if conversation.id in ids]
    if not found:
        chat.screen.note("there are none")
    for conversation in found:
        label = conversation.name or conversation.title or "(empty)"
        here = "*" if conversation.id == chat.autosaver.id else " "
        chat.screen.note(f"{here}{conversation.id:>4}  {conversation.n_messages:>3} messages  {label}")


@command("export", usage="FILE [--force]", argument=Argument.PATH)
def export(chat: "Chat", argument: str) -> None:
    """Write the conversation to a file: Markdown, or by its suffix .json or .jsonl."""
    name = argument.removesuffix(" --force")
    if not name or name == "--force":
        raise UsageError("no file is named", hint="write /export talk.md")
    file, (store, id) = parse_path(name), _require_conversation(chat)
    text = format_export(store.find(str(id)), chat.session.messages, choose_format(file))
    write_export(file, text, replacing=name != argument)
    chat.screen.note(f"wrote {file}")


@command("copy")
def copy(chat: "Chat", argument: str) -> None:
    """Copy the last answer to the clipboard, through the terminal (OSC 52)."""
    text = chat.session.find_last("assistant").text
    if copy_in_tmux(text):
        chat.screen.note(f"handed {len(text)} characters to tmux, and through it to the terminal")
    else:
        chat.screen.send(format_copy(text))
        chat.screen.note(f"handed {len(text)} characters to the terminal")


def show_last_turn(chat: "Chat", conversation: "StoredConversation") -> None:
    """Show the last turn of a conversation, to remind of where it stands."""
    messages = chat.session.messages
    label = conversation.name or conversation.title
    chat.screen.note(f"conversation {conversation.id}, {len(messages)} messages: {label}")
    at = max((at for at, message in enumerate(messages) if message.role == "user"), default=len(messages))
    for message in messages[at:]:
        match message.role:
            case "user":
                chat.screen.note(f">>> {message.text}")
            case "tool":
                chat.screen.note(f"{message.extra.get('name', 'the tool')} returned: {message.text}")
            case _ if message.text:
                chat.screen.show_answer(message.text)
        for call in message.extra.get("tool_calls", ()):
            chat.screen.note(f"{call['function']['name']} was called with {call['function']['arguments']}")
    if messages and messages[-1].is_partial:
        chat.screen.note("this answer was cut off; /continue goes on")
    elif messages and messages[-1].role == "user":
        chat.screen.note("this message has no answer yet; /regen answers it")


def _require_store(chat: "Chat") -> "Store":
    if chat.autosaver.store is None:
        raise UsageError("nothing is kept in this chat", hint="start it without --no-save")
    return chat.autosaver.store


def _require_conversation(chat: "Chat") -> "tuple[Store, int]":
    """Save the conversation; returns the store and its id there."""
    store = _require_store(chat)
    chat.autosaver.save(chat.session)
    if chat.autosaver.id is None:
        raise UsageError("there is no conversation yet", hint="say something first")
    return store, chat.autosaver.id
