"""How far a prompt is read, and how far a batch is answered, on a terminal."""

import math
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self, assert_never

from m7b.completions import BatchProgress
from m7b.generation import CallDelta, Finished, GenerationEvent, PromptProgress, TextDelta
from m7b.render import Status, note


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


class BatchStatus:
    """Shows how far a batch is, how fast it goes and how long it will take. A context manager.

    Args:
        n_requests: how many there are, None where that is not known.
        n_at_once: how many are answered at once, where the user did not say: they are told.
    """

    def __init__(self, n_requests: int | None, n_at_once: int | None) -> None:
        self._n_requests, self._n_at_once = n_requests, n_at_once
        self._status, self._started = Status(), time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._status.clear()

    def show(self, progress: BatchProgress) -> None:
        """Tell how far it is."""
        if self._n_at_once and progress.n_running > 1:
            note(f"answering up to {self._n_at_once} requests at once; --parallel N changes that")
            self._n_at_once = None
        n_done, total = progress.n_done, "" if self._n_requests is None else f" of {self._n_requests}"
        text = f"{n_done}{total} answered, {progress.n_running} under way"
        if n_done:
            a_minute = 60 * n_done / (time.monotonic() - self._started)
            text += f", {a_minute:.3g} a minute"
            if self._n_requests is not None:
                text += f", {_format_minutes((self._n_requests - n_done) / a_minute)} left"
        self._status.show(text)


def _format_minutes(minutes: float) -> str:
    """7.4: "8 min"; 90: "1 h 30 min"; less than one: in seconds."""
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    whole = math.ceil(minutes)
    return f"{whole} min" if whole < 60 else f"{whole // 60} h {whole % 60} min"
