"""Streams in OpenAI's shapes: what happened to the choices of one request, as chunks. Knows no HTTP."""

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from m7b.completions import Completion, LogprobWriter, count_cached, count_usage
from m7b.generation import (
    CallDelta,
    CallPart,
    Finished,
    FinishReason,
    GenerationEvent,
    PromptProgress,
    TextDelta,
    TokenLogprob,
)


def tell_usage(completions: list[Completion]) -> dict[str, Any]:
    """The usage of a request, and what of its prompts was not read again."""
    return count_usage(completions) | {"prompt_tokens_details": count_cached(completions)}


@dataclass
class _Told:
    """What was told of one choice."""

    logprobs: LogprobWriter
    is_begun: bool = False
    n_logprobs: int = 0
    n_calls: int = 0
    call_text: str = ""


class Chunks:
    """Makes chunks of events.

    Args:
        completions: one for each prompt of the request; all chats, or all texts.
        includes_usage: whether a last chunk tells the usage.
    """

    def __init__(self, completions: list[Completion], *, includes_usage: bool = False) -> None:
        self._completions, self._includes_usage = completions, includes_usage
        self._is_chat = completions[0].request.conversation is not None
        self._told = [_Told(LogprobWriter(each)) for each in completions for _ in range(each.request.n)]
        self._head = {
            "id": f"{'chatcmpl' if self._is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": "chat.completion.chunk" if self._is_chat else "text_completion",
            "created": int(time.time()),
            "model": completions[0].model.name,
        }

    def add(self, index: int, event: GenerationEvent) -> Iterator[dict[str, Any]]:
        """The chunks that `event` of the choice `index` makes."""
        told = self._told[index]
        if self._is_chat and not told.is_begun:
            told.is_begun = True
            yield self._chunk(index, {"delta": {"role": "assistant", "content": ""}})
        match event:
            case TextDelta(text, logprobs):
                yield self._chunk(index, self._text(text), logprobs=logprobs)
            case CallDelta(text, parts):  # without parts told whole, once it is sure that they are calls
                told.call_text += text
                yield from (self._call(index, part) for part in parts)
            case Finished():
                yield from self._finish(index, event)
            case PromptProgress():
                pass
            case other:
                assert_never(other)

    def finish(self) -> Iterator[dict[str, Any]]:
        """The chunk behind all choices."""
        if self._includes_usage:
            yield self._head | {"choices": [], "usage": tell_usage(self._completions)}

    def _finish(self, index: int, finished: Finished) -> Iterator[dict[str, Any]]:
        told = self._told[index]
        if finished.reason is FinishReason.LENGTH and told.call_text and not told.n_calls:
            yield self._chunk(index, self._text(told.call_text))
        for number, call in enumerate(finished.calls[told.n_calls :], told.n_calls):
            yield self._call(index, CallPart(number, call.id, call.name))
            yield self._call(index, CallPart(number, call.id, arguments=call.arguments))
        last = {"delta": {}} if self._is_chat else self._text("")
        rest = told.logprobs.list_entries(finished)[told.n_logprobs :]
        yield self._chunk(index, last, finish_reason=finished.reason.value, logprobs=rest)

    def _call(self, index: int, part: CallPart) -> dict[str, Any]:
        """The chunk of a part of a call; the first of a call has its id and name, and no other."""
        function = {"arguments": part.arguments} | ({"name": part.name} if part.name else {})
        head = {"id": part.id, "type": "function"} if part.name else {}
        self._told[index].n_calls = part.index + 1
        return self._chunk(
            index, {"delta": {"tool_calls": [head | {"index": part.index, "function": function}]}}
        )

    def _text(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text}} if self._is_chat else {"text": text}

    def _chunk(
        self,
        index: int,
        content: dict[str, Any],
        finish_reason: str | None = None,
        logprobs: Sequence[TokenLogprob] = (),
    ) -> dict[str, Any]:
        told = self._told[index]
        told.n_logprobs += len(logprobs)
        is_due = logprobs or (finish_reason and not self._is_chat)  # an echoed prompt has some of its own
        written = told.logprobs.write(logprobs) if is_due else None
        choice = {"index": index, **content, "finish_reason": finish_reason, "logprobs": written}
        return self._head | {"choices": [choice]} | ({"usage": None} if self._includes_usage else {})
