"""A request that a model of this process answers."""

from collections.abc import Iterator, Sequence
from typing import Any

from m7b.completions.answer import count_cached, format_answer
from m7b.completions.completion import Completion
from m7b.completions.remarks import Remarks, find_remarks
from m7b.completions.request import CompletionRequest
from m7b.generation import GenerationEvent, PromptProgress
from m7b.models import Model, PromptCache


class LocalAnswer:
    """The answer to a request: `remarks` first, then what happens, then all of it.

    Args:
        model: answers.
        request: what it is asked.
        prompt_cache: has the beginning of the prompt, perhaps, and keeps what is read of it.

    Raises:
        UsageError: the model cannot answer such a request.
    """

    def __init__(
        self, model: Model, request: CompletionRequest, prompt_cache: PromptCache | None = None
    ) -> None:
        self.remarks: Remarks = find_remarks(model, request)
        self._model, self._request, self._prompt_cache = model, request, prompt_cache
        if prompt_cache:
            prompt_cache.check(model)
        self._completion: Completion | None = None

    def samples(self) -> Iterator[Iterator[GenerationEvent]]:
        """The events of each sample in turn; each must be pulled to its end before the next."""
        self._completion = Completion(self._model, self._request)
        if self._prompt_cache is None:
            yield from self._completion.samples()
            return
        self._prompt_cache.restore(self._model, self._completion.ids)
        samples = self._completion.samples()
        yield self._keep_prompt(self._prompt_cache, self._completion.ids, next(samples))
        yield from samples  # which have the prompt of the first

    def _keep_prompt(
        self, prompt_cache: PromptCache, ids: Sequence[int], events: Iterator[GenerationEvent]
    ) -> Iterator[GenerationEvent]:
        """`events`; as soon as the prompt is read it is kept, before the answer rolls it out of a window."""
        for event in events:
            if isinstance(event, PromptProgress) and event.done == event.total:
                prompt_cache.save(self._model, ids)
            yield event

    def format(self) -> dict[str, Any]:
        """The answer object, behind the end of the last sample."""
        assert self._completion is not None, "nothing was asked for"
        answer = format_answer(self._completion)
        if self._prompt_cache:
            answer["usage"] |= {"prompt_tokens_details": count_cached([self._completion])}
        return answer
