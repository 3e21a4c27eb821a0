"""One request on its way through the model. Knows requests, templates and events; nothing about JSON."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import assert_never

from m7b.completions.request import CompletionRequest
from m7b.errors import UsageError
from m7b.generation import (
    CallDelta,
    Finished,
    FinishReason,
    GenerationEvent,
    PromptProgress,
    TextDelta,
    TokenLogprob,
)
from m7b.models import Model
from m7b.offer import Offer, check_template
from m7b.stream import stream
from m7b.tools import tools_in


@dataclass(frozen=True, slots=True)
class Choice:
    """One finished sample."""

    index: int
    text: str
    finished: Finished


class Completion:
    """One request on its way: pull its events, then take the answer.

    Args:
        model: answers; its stops are added to the request's.
        request: what to do.

    Attributes:
        ids: the prompt.
        continues: whether the answer's text carries on from the prompt's.
        prompt_logprobs: of all ids of the prompt but the first, where they are wanted.

    Raises:
        UsageError: there is nothing to continue from, or the model cannot chat.
        InvalidConversation: the template does not take the conversation.
    """

    def __init__(self, model: Model, request: CompletionRequest) -> None:
        self.model = model
        self.request = request
        if request.conversation is None:
            self.ids = model.tokenizer.encode(request.prompt, bos=model.tokenizer.adds_bos)
            self.continues = bool(request.prompt)
        else:
            messages = request.conversation.messages
            self.ids = model.chat_template.encode(messages, request.conversation.tools)
            self.continues = any(message.get("prefix") for message in messages[-1:])
        if not self.ids:
            raise UsageError(
                "the prompt is empty", hint="this model needs at least one character to continue from"
            )
        offer = None if self.continues else _offer(request)
        self._syntax = offer.syntax(model.tokenizer) if offer else None
        constraint = request.params.constraint
        if request.grammar is not None:
            constraint = model.compile(request.grammar, continues=self.continues)
        elif offer:
            check_template(model.chat_template)
            constraint = model.constrain_calls(offer)
        self._params = replace(
            request.params, stop_ids=request.params.stop_ids | model.stop_ids, constraint=constraint
        )
        self.choices: list[Choice] = []
        self.prompt_logprobs: list[TokenLogprob] = []

    def samples(self) -> Iterator[Iterator[GenerationEvent]]:
        """The events of each sample in turn; each must be pulled to its end before the next."""
        self.model.engine.forget()  # the same seed gives the same text, whatever was asked before
        for index in range(self.request.n):
            yield self._sample(index)

    def _sample(self, index: int) -> Iterator[GenerationEvent]:
        request = self.request
        params = self._params
        if params.seed is not None:
            params = replace(params, seed=params.seed + index)
        if request.echo and params.logprobs is not None and not self.prompt_logprobs:
            self.prompt_logprobs = list(self.model.engine.score(self.ids, params.logprobs))
            self.model.engine.forget()
        text = request.prompt if request.echo else ""
        calls = ""
        if text:
            yield TextDelta(text)
        for event in stream(
            self.model.engine,
            self.model.tokenizer,
            self.ids,
            params,
            continues=self.continues,
            calls=self._syntax,
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
    checked = [tool.as_json() for tool in tools_in(tools, "tools")]
    return Offer(checked, request.tool_choice, request.constrains_calls)
