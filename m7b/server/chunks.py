"""Streams in OpenAI's shapes: what happened to the choices of one request, as chunks. Knows no HTTP."""

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, assert_never

from m7b.completions import Completion, count_cached, count_usage, format_logprobs
from m7b.generation import CallDelta, Finished, FinishReason, GenerationEvent, PromptProgress, TextDelta


def tell_usage(completions: list[Completion]) -> dict[str, Any]:
    """The usage of a request, and what of its prompts was not read again."""
    return count_usage(completions) | {"prompt_tokens_details": count_cached(completions)}


@dataclass
class Chunks:
    """Makes chunks of events.

    Args:
        completions: one for each prompt of the request; all chats, or all texts.
        includes_usage: whether a last chunk tells the usage.
    """

    completions: list[Completion]
    includes_usage: bool = False
    _begun: set[int] = field(default_factory=set)
    _calls: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._is_chat = self.completions[0].request.conversation is not None
        self._head = {
            "id": f"{'chatcmpl' if self._is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": "chat.completion.chunk" if self._is_chat else "text_completion",
            "created": int(time.time()),
            "model": self.completions[0].model.name,
        }

    def add(self, index: int, event: GenerationEvent) -> Iterator[dict[str, Any]]:
        """The chunks that `event` of the choice `index` makes."""
        if self._is_chat and index not in self._begun:
            self._begun.add(index)
            yield self._chunk(index, {"delta": {"role": "assistant", "content": ""}})
        match event:
            case TextDelta(text):
                yield self._chunk(index, self._text(text))
            case CallDelta(text):  # told whole, once it is sure that they are calls
                self._calls[index] = self._calls.get(index, "") + text
            case Finished():
                yield from self._finish(index, event)
            case PromptProgress():
                pass
            case other:
                assert_never(other)

    def finish(self) -> Iterator[dict[str, Any]]:
        """The chunk behind all choices."""
        if self.includes_usage:
            yield self._head | {"choices": [], "usage": tell_usage(self.completions)}

    def _finish(self, index: int, finished: Finished) -> Iterator[dict[str, Any]]:
        if finished.reason is FinishReason.LENGTH and index in self._calls:
            yield self._chunk(index, self._text(self._calls[index]))
        for number, call in enumerate(finished.calls):
            begun = call.as_json() | {"index": number, "function": {"name": call.name, "arguments": ""}}
            yield self._chunk(index, {"delta": {"tool_calls": [begun]}})
            rest = {"index": number, "function": {"arguments": call.arguments}}
            yield self._chunk(index, {"delta": {"tool_calls": [rest]}})
        completion, choice = self._find(index)
        logprobs = format_logprobs(completion, choice)
        last = self._text("") if not self._is_chat else {"delta": {}}
        yield self._chunk(index, last, finish_reason=finished.reason.value, logprobs=logprobs)

    def _find(self, index: int) -> tuple[Completion, Any]:
        completion = self.completions[index // self.completions[0].request.n]
        number = index % self.completions[0].request.n
        return completion, next(choice for choice in completion.choices if choice.index == number)

    def _text(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text}} if self._is_chat else {"text": text}

    def _chunk(
        self, index: int, content: dict[str, Any], finish_reason: str | None = None, logprobs: Any = None
    ) -> dict[str, Any]:
        choice = {"index": index, **content, "finish_reason": finish_reason, "logprobs": logprobs}
        return self._head | {"choices": [choice]} | ({"usage": None} if self.includes_usage else {})
