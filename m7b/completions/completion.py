"""One request on its way through the model. Knows requests, templates and events; nothing about JSON."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import assert_never

from m7b.completions.request import CompletionRequest
from m7b.constraint import compile_constraint
from m7b.errors import UsageError
from m7b.generation import (
    CallDelta,
    Constraint,
    Engine,
    Finished,
    FinishReason,
    GenerationEvent,
    PromptProgress,
    TextDelta,
    TokenLogprob,
)
from m7b.offer import Offer, check_template
from m7b.stream import stream
from m7b.templates import Template
from m7b.tokenizer import Tokenizer
from m7b.tools import parse_tools


@dataclass(frozen=True, slots=True)
class Choice:
    """One finished sample."""

    index: int
    text: str
    finished: Finished


class Completion:
    """One request on its way: pull its events, then take the answer.

    Args:
        engine: generates.
        tokenizer: encodes and decodes.
        request: what to do.
        template: encodes the conversation, where the request is one.
        vocab_size: the model's number of ids.

    Attributes:
        ids: the prompt.
        continues: whether the answer's text carries on from the prompt's.
        prompt_logprobs: of all ids of the prompt but the first, where they are wanted.

    Raises:
        UsageError: there is nothing to continue from.
        InvalidConversation: the template does not take the conversation.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        request: CompletionRequest,
        template: Template | None = None,
        *,
        vocab_size: int,
    ) -> None:
        self._engine = engine
        self.tokenizer = tokenizer
        self.request = request
        if request.conversation is None:
            self.ids = tokenizer.encode(request.prompt, bos=tokenizer.adds_bos)
            self.continues = bool(request.prompt)
        else:
            assert template is not None
            self.ids = template.encode(request.conversation.messages, request.conversation.tools)
            last = request.conversation.messages[-1:]
            self.continues = any(message.get("prefix") for message in last)
        if not self.ids:
            raise UsageError(
                "the prompt is empty", hint="this model needs at least one character to continue from"
            )
        offer = None if self.continues else _offer(request)
        self._syntax = offer.syntax(tokenizer) if offer else None
        self._params = request.params
        stop_ids = request.params.stop_ids
        if request.grammar is not None:
            constraint: Constraint | None = compile_constraint(
                request.grammar, tokenizer, vocab_size=vocab_size, stop_ids=stop_ids, continues=self.continues
            )
            self._params = replace(request.params, constraint=constraint)
        elif offer and template:
            check_template(template)
            constraint = offer.constraint(tokenizer, vocab_size=vocab_size, stop_ids=stop_ids)
            self._params = replace(request.params, constraint=constraint)
        self.choices: list[Choice] = []
        self.prompt_logprobs: list[TokenLogprob] = []

    def samples(self) -> Iterator[Iterator[GenerationEvent]]:
        """The events of each sample in turn; each must be pulled to its end before the next."""
        self._engine.forget()  # the same seed gives the same text, whatever was asked before
        for index in range(self.request.n):
            yield self._sample(index)

    def _sample(self, index: int) -> Iterator[GenerationEvent]:
        request = self.request
        params = self._params
        if params.seed is not None:
            params = replace(params, seed=params.seed + index)
        if request.echo and params.logprobs is not None and not self.prompt_logprobs:
            self.prompt_logprobs = list(self._engine.score(self.ids, params.logprobs))
            self._engine.forget()
        text = request.prompt if request.echo else ""
        calls = ""
        if text:
            yield TextDelta(text)
        for event in stream(
            self._engine, self.tokenizer, self.ids, params, continues=self.continues, calls=self._syntax
        ):
            match event:
                case TextDelta():
                    text += event.text
                case CallDelta():
                    calls += event.text
                case Finished():
                    is_cut = event.reason is FinishReason.LENGTH  # then they are no calls
                    self.choices.append(Choice(index, text + calls if is_cut else text, event))
                case PromptProgress():
                    pass
                case other:
                    assert_never(other)
            yield event


def _offer(request: CompletionRequest) -> Offer | None:
    """The tools of the conversation, checked as strictly as those of files."""
    tools = request.conversation.tools if request.conversation else None
    if not tools:
        return None
    checked = [tool.as_json() for tool in parse_tools(tools, "tools")]
    return Offer(checked, request.tool_choice, request.constrains_calls)
