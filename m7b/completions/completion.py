"""One request on its way through the model. Knows requests, templates and events; nothing about JSON."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, assert_never

from m7b.call_format import MISTRAL
from m7b.completions.request import CompletionRequest
from m7b.errors import UsageError
from m7b.generation import (
    CallDelta,
    Finished,
    FinishReason,
    GenerationEvent,
    PromptProgress,
    SequenceHandle,
    TextDelta,
    TokenLogprob,
)
from m7b.models import Model
from m7b.offer import Offer, check_template
from m7b.stream import EventStream
from m7b.templates import find_call_format, list_left_out
from m7b.templates.openai import read_tools
from m7b.tokenizer import encode_special
from m7b.tools import keep_enforceable, parse_tools


@dataclass(frozen=True, slots=True)
class Choice:
    """One finished sample."""

    index: int
    text: str
    finished: Finished


class _Sample:
    """One sample while it is generated: what happened that nobody has seen, and the text so far."""

    def __init__(self, index: int, sequence: SequenceHandle, stream: EventStream, text: str) -> None:
        self.sequence = sequence
        self.events: deque[GenerationEvent] = deque()
        self.choice: Choice | None = None
        self._index, self._stream = index, stream
        self._text, self._calls = "", ""
        if text:
            self._note(TextDelta(text))

    def gather(self) -> None:
        """Take what the engine has said of the sequence; one that has ended its text is let go."""
        if self.choice:
            return
        for step in self.sequence.take():
            if event := self._stream.push(step):
                self._note(event)
            if self._stream.is_done:
                break
        if self._stream.is_done or (self.sequence.is_done and not self.sequence.has_events):
            self.end()

    def end(self) -> None:
        """Let the text end where it is."""
        if self.choice is None:
            self.sequence.cancel()
            for last in self._stream.finish():
                self._note(last)

    def _note(self, event: GenerationEvent) -> None:
        match event:
            case TextDelta():
                self._text += event.text
            case CallDelta():
                self._calls += event.text
            case Finished():
                is_cut = event.reason is FinishReason.LENGTH  # then they are no calls
                self.choice = Choice(self._index, self._text + self._calls if is_cut else self._text, event)
            case PromptProgress():
                pass
            case other:
                assert_never(other)
        self.events.append(event)


class Completion:
    """One request on its way. Its samples run side by side over one prompt, beside other requests.

    Either pull the events of one sample after another (`samples`), or `start` it, let the model's engine
    step, and `gather` what comes until it `is_done`.

    Args:
        model: answers; its stops are added to the request's.
        request: what to do.

    Attributes:
        ids: the prompt.
        continues: whether the answer's text carries on from the prompt's.
        left_out: the places of what the template leaves out of the conversation.
        left_out_tools: a line about each tool that is not offered, because its calls cannot be kept valid.
        prompt_logprobs: of all ids of the prompt but the first, where they are wanted.

    Raises:
        UsageError: there is nothing to continue from, or the model cannot chat.
        InvalidConversation: the template does not take the conversation.
    """

    def __init__(self, model: Model, request: CompletionRequest) -> None:
        self.model = model
        request, self.left_out_tools = leave_out_tools(request)
        self.request = request
        self.left_out: list[str] = []
        if request.conversation is None:
            self.ids = _encode(model, request)
            self.continues = bool(request.prompt)
        else:
            messages = request.conversation.messages
            self.ids = model.chat_template.encode(messages, request.conversation.tools)
            self.continues = any(message.get("prefix") for message in messages[-1:])
            self.left_out = list_left_out(model.chat_template, messages)
        if not self.ids:
            raise UsageError(
                "the prompt is empty", hint="this model needs at least one character to continue from"
            )
        offer = None if self.continues else _offer(model, request)
        self._syntax = offer.syntax(model.tokenizer) if offer else None
        constraint = request.params.constraint
        if request.grammar is not None:
            constraint = model.compile(request.grammar, continues=self.continues)
        elif offer:
            check_template(model.chat_template)
            constraint = model.constrain_calls(offer)
        self._params = replace(
            request.params, stop_ids=model.list_stop_ids(request.params), constraint=constraint
        )
        self._samples: list[_Sample] = []
        self.prompt_logprobs: list[TokenLogprob] = []

    @property
    def choices(self) -> list[Choice]:
        """The samples that are finished."""
        return [sample.choice for sample in self._samples if sample.choice]

    @property
    def is_done(self) -> bool:
        """Whether all samples are finished."""
        return self.n_running == 0

    @property
    def n_running(self) -> int:
        """How many samples are not finished."""
        return self.request.n - len(self.choices)

    def start(self) -> None:
        """Queue all samples.

        The same seed gives the same text, whatever the engine reads before and beside it.

        Raises:
            ContextOverflow: the prompt leaves no room for a token.
            UsageError: the prompt or the sampling names ids that the model does not have.
        """
        request, engine = self.request, self.model.engine
        if request.echo and self._params.logprobs is not None:
            self.prompt_logprobs = list(engine.score(self.ids, self._params.logprobs))
        for index in range(request.n):
            params = self._params
            if params.seed is not None:
                params = replace(params, seed=params.seed + index)
            stream = EventStream(
                self.model.tokenizer,
                len(self.ids),
                params,
                continues=self.continues,
                calls=self._syntax,
                controls=self.model.controls,
            )
            sequence = engine.submit(self.ids, params)  # which looks at the ids
            text = _decode(self.model, request.prompt) if request.echo else ""
            self._samples.append(_Sample(index, sequence, stream, text))

    def gather(self) -> Iterator[tuple[int, GenerationEvent]]:
        """The events of all samples since the last call, each with the index of its sample.

        Raises:
            M7bError: one of the samples failed.
        """
        for index, sample in enumerate(self._samples):
            sample.gather()
            while sample.events:
                yield index, sample.events.popleft()

    def end(self) -> None:
        """End what is not finished where it is, as if the last token had been asked for."""
        for sample in self._samples:
            sample.end()

    def cancel(self) -> None:
        """Let go of what is not finished."""
        for sample in self._samples:
            sample.sequence.cancel()

    def samples(self) -> Iterator[Iterator[GenerationEvent]]:
        """The events of each sample in turn; each must be pulled to its end before the next."""
        self.start()
        try:
            for sample in self._samples:
                yield self._follow(sample)
        finally:
            self.cancel()

    def _follow(self, sample: _Sample) -> Iterator[GenerationEvent]:
        while True:
            for each in self._samples:
                each.gather()
            while sample.events:
                yield sample.events.popleft()
            if sample.choice:
                return
            self.model.engine.step()


def _encode(model: Model, request: CompletionRequest) -> list[int]:
    """The ids of the prompt; ids stand as they are."""
    tokenizer, prompt = model.tokenizer, request.prompt
    if isinstance(prompt, tuple):
        return list(prompt)
    encode = partial(encode_special, tokenizer) if request.special else tokenizer.encode
    return encode(prompt, bos=tokenizer.adds_bos)


def _decode(model: Model, prompt: str | tuple[int, ...]) -> str:
    return prompt if isinstance(prompt, str) else model.tokenizer.decode(prompt)


def leave_out_tools(request: CompletionRequest) -> tuple[CompletionRequest, list[str]]:
    """Leave out the tools whose calls cannot be kept valid; returns a line about each of them, too.

    Raises:
        UsageError: none is left of those that may be called, or not the one that must be; or one is no tool.
    """
    chat = request.conversation
    if chat is None or not chat.tools or not request.constrains_calls or request.grammar is not None:
        return request, []
    kept, left_out = keep_enforceable(_check_tools(request), demanded=request.tool_choice)
    if not left_out:
        return request, []
    names = {tool["function"]["name"] for tool in kept}
    tools = [tool for tool in read_tools(chat.tools) or [] if tool["function"]["name"] in names]
    return replace(request, conversation=replace(chat, tools=tools)), left_out


def _check_tools(request: CompletionRequest) -> list[dict[str, Any]]:
    """The tools that may be called, checked as strictly as those of files."""
    tools = request.conversation.tools if request.conversation else None
    checked = [tool.as_json() for tool in parse_tools(read_tools(tools) or [], "tools")]
    if request.allowed_tools is not None:
        checked = [tool for tool in checked if tool["function"]["name"] in request.allowed_tools]
    return checked


def _offer(model: Model, request: CompletionRequest) -> Offer | None:
    """The tools of the conversation that may be called, None where it has none."""
    if not request.conversation or not request.conversation.tools:
        return None
    checked = _check_tools(request)
    form = find_call_format(model.chat_template) or MISTRAL
    return Offer(checked, request.tool_choice, request.constrains_calls, request.is_parallel, form)
