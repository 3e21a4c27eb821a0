"""A request that a model of this process answers."""

from collections.abc import Iterator
from typing import Any

from m7b.completions.answer import format_answer
from m7b.completions.completion import Completion
from m7b.completions.remarks import Remarks, find_remarks
from m7b.completions.request import CompletionRequest
from m7b.generation import GenerationEvent
from m7b.models import Model


class LocalAnswer:
    """The answer to a request: `remarks` first, then what happens, then all of it.

    Raises:
        UsageError: the model cannot answer such a request.
    """

    def __init__(self, model: Model, request: CompletionRequest) -> None:
        self.remarks: Remarks = find_remarks(model, request)
        self._model, self._request = model, request
        self._completion: Completion | None = None

    def samples(self) -> Iterator[Iterator[GenerationEvent]]:
        """The events of each sample in turn; each must be pulled to its end before the next."""
        self._completion = Completion(self._model, self._request)
        yield from self._completion.samples()

    def format(self) -> dict[str, Any]:
        """The answer object, behind the end of the last sample."""
        assert self._completion is not None, "nothing was asked for"
        return format_answer(self._completion)
