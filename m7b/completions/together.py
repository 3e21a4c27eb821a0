"""Many requests at once in one engine, answered in their order."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from m7b.completions.answer import format_answer
from m7b.completions.completion import Completion
from m7b.completions.feed import LineFeed
from m7b.completions.line import parse_line, wrap_error
from m7b.completions.request import CompletionRequest, parse_request
from m7b.errors import M7bError
from m7b.models import Model

_AHEAD = 8  # times as many requests as run at once may be begun, while the first of them is not done


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """`n_done` requests are answered and `n_running` under way."""

    n_done: int
    n_running: int


class Together:
    """Answers lines of JSON, several at once.

    Args:
        model: answers.
        defaults: what a line leaves out.
        is_chat: whether lines have messages.
        parallel: the most sequences that run at once; a request for more than that runs alone.
        report: called with the progress, after every pass of the model.

    Attributes:
        n_shortened: how many requests say what the template leaves out.
        n_without_tools: how many requests have tools that are not offered.
    """

    def __init__(
        self,
        model: Model,
        defaults: CompletionRequest,
        *,
        is_chat: bool,
        parallel: int,
        report: Callable[[BatchProgress], object],
    ) -> None:
        self._model, self._defaults, self._is_chat = model, defaults, is_chat
        self._parallel, self._report = parallel, report
        self._begun: deque[_Answering] = deque()  # in the order of their lines
        self.n_shortened = self.n_without_tools = 0

    def answer(self, lines: LineFeed) -> Iterator[dict[str, Any]]:
        """The answers to `lines`, in order; an M7bError becomes the answer of its line.

        Each is what it would be alone, to the last bit where the backend promises that.
        """
        n_done = 0
        try:
            while True:
                self._begin(lines)
                while self._begun and self._begun[0].answer is not None:
                    n_done += 1
                    yield self._begun.popleft().answer or {}
                running = [each for each in self._begun if each.answer is None]
                if not running and lines.is_over and not self._begun:
                    return
                if running:
                    self._report(BatchProgress(n_done, len(running)))
                    self._step(running)
        finally:
            for each in self._begun:
                each.cancel()

    def _begin(self, lines: LineFeed) -> None:
        """Take lines while there is room. Waits for one only where nothing else is to be done."""
        while not lines.is_over and len(self._begun) < _AHEAD * self._parallel:
            if self._count_running() >= self._parallel:
                return
            line = lines.take(waits=not self._begun)
            if line is None:
                return
            self._begun.append(_Answering(self._model, line, self._defaults, is_chat=self._is_chat))
            self.n_shortened += self._begun[-1].is_shortened
            self.n_without_tools += self._begun[-1].lacks_tools

    def _count_running(self) -> int:
        return sum(each.n_sequences for each in self._begun)

    def _step(self, running: "list[_Answering]") -> None:
        try:
            self._model.engine.step()
        except M7bError as error:
            for each in running:
                each.fail(error)
        for each in running:
            each.gather()


class _Answering:
    """One line on its way to its answer."""

    def __init__(self, model: Model, line: bytes, defaults: CompletionRequest, *, is_chat: bool) -> None:
        self.answer: dict[str, Any] | None = None
        self._raw = line
        self._completion: Completion | None = None
        try:
            self._line = parse_line(line, is_chat=is_chat)
            request = parse_request(self._line.fields, defaults, is_chat=self._line.is_chat)
            self._completion = Completion(model, request)
            self._completion.start()
            self.gather()
        except M7bError as error:
            self.fail(error)

    @property
    def n_sequences(self) -> int:
        """How many sequences run for it."""
        return self._completion.n_running if self._completion and self.answer is None else 0

    @property
    def is_shortened(self) -> bool:
        """Whether the template leaves out some of it."""
        return bool(self._completion and self._completion.left_out)

    @property
    def lacks_tools(self) -> bool:
        """Whether some of its tools are not offered."""
        return bool(self._completion and self._completion.left_out_tools)

    def gather(self) -> None:
        """Take what has come; the answer, where that is all."""
        if self.answer is not None or self._completion is None:
            return
        try:
            for _ in self._completion.gather():
                pass
        except M7bError as error:
            self.fail(error)
            return
        if self._completion.is_done:
            self.answer = self._line.wrap(format_answer(self._completion))

    def fail(self, error: M7bError) -> None:
        """Let the error be the answer."""
        self.cancel()
        self.answer = wrap_error(self._raw, error)

    def cancel(self) -> None:
        """Let go of what is not done."""
        if self._completion:
            self._completion.cancel()
