"""Completion with Tab at the prompt: commands, parameters, files, conversations, models."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from m7b import hub
from m7b.render import Theme
from m7b.repl.parameters import PARAMETERS
from m7b.repl.slash import COMMANDS
from m7b.repl.slash.looks import TOPICS
from m7b.repl.slash.registry import Argument
from m7b.variants import VARIANTS

if TYPE_CHECKING:
    from m7b.repl.chat import Chat

_PATHS = PathCompleter(expanduser=True)


class SlashCompleter(Completer):
    """Completes lines that begin with a slash; it leaves text for the model alone."""

    def __init__(self, chat: "Chat") -> None:
        self._chat = chat

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        """Yield what may follow at the cursor."""
        line = document.text_before_cursor
        if not line.startswith("/") or line.startswith("//") or "\n" in line:
            return
        name, space, argument = line[1:].partition(" ")
        if not space:
            yield from _complete_word(name, (name for entry in COMMANDS for name in entry.names))
            return
        entry = next((entry for entry in COMMANDS if name in entry.names), None)
        if entry is None:
            return
        if entry.argument in (Argument.PATH, Argument.MODEL):
            yield from _PATHS.get_completions(Document(argument), complete_event)
        if entry.argument in self._word_lists:
            word = argument.split(" ")[-1]
            yield from _complete_word(word, self._word_lists[entry.argument]())

    @property
    def _word_lists(self) -> Mapping[Argument, Callable[[], Iterable[str]]]:
        return {
            Argument.COMMAND: lambda: (name for entry in COMMANDS for name in entry.names),
            Argument.PARAMETER: lambda: PARAMETERS,
            Argument.TOPIC: lambda: TOPICS,
            Argument.SIDE: lambda: ("user", "answer"),
            Argument.CONVERSATION: self._list_conversations,
            Argument.MODEL: lambda: dict.fromkeys([*VARIANTS, *hub.shelf.list_names()]),
            Argument.THEME: lambda: Theme,
            Argument.TOOLS: lambda: ("list", "on", "off", "load"),
        }

    def _list_conversations(self) -> list[str]:
        store = self._chat.autosaver.store
        found = store.list_conversations() if store else []
        return [conversation.name or str(conversation.id) for conversation in found]


def _complete_word(word: str, words: Iterable[str]) -> Iterator[Completion]:
    """Complete `word` to each of `words` that begins with it."""
    return (Completion(found, start_position=-len(word)) for found in words if found.startswith(word))
