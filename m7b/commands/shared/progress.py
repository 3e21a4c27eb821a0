"""How far the reading of a prompt is, on a terminal."""

from collections.abc import Iterator
from types import TracebackType
from typing import Self, assert_never

from m7b.generation import CallDelta, Finished, GenerationEvent, PromptProgress, TextDelta
from m7b.render import Status


class PromptStatus:
    """Shows how far a prompt is read, until there is text. A context manager: its end clears the line."""

    def __init__(self) -> None:
        self._status = Status()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._status.clear()

    def show(self, event: GenerationEvent) -> None:
        """Take note of an event."""
        match event:
            case PromptProgress():
                self._status.show(f"reading the prompt: {event.done} of {event.total} tokens")
            case TextDelta() | CallDelta() | Finished():
                self._status.clear()
            case other:
                assert_never(other)

    def watch(self, events: Iterator[GenerationEvent]) -> Iterator[GenerationEvent]:
        """The same events, each shown as it passes."""
        for event in events:
            self.show(event)
            yield event
