"""From engine steps to events: text that is final, calls, and the end.

Knows tokenizers and the engine's contract; knows nothing about terminals.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import assert_never

from m7b.call_format import MISTRAL, CallFormat, find_trigger, split_controls
from m7b.calls import CallReader, parse_calls, split_calls
from m7b.detokenizer import IncrementalDecoder, StopStrings, find_overlap
from m7b.generation import (
    CallDelta,
    Finished,
    FinishReason,
    GenerationEvent,
    PromptProgress,
    SamplingParams,
    Step,
    TextDelta,
    TokenLogprob,
    ToolCall,
    Usage,
)
from m7b.tokenizer import Tokenizer

_SPACES = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """How calls of tools are told from text.

    They begin with `call_id` where the model has such an id; with `in_text`, text that begins as `form` does
    is taken for calls as well. Calls of the tools named in `anywhere` count behind prose too, once the answer
    is over: what no grammar keeps in order may stand there. `controls` are the control ids by their names.
    With `is_exact` a grammar keeps what has begun in the form.
    """

    call_id: int | None
    in_text: bool
    anywhere: frozenset[str] = frozenset()
    form: CallFormat = MISTRAL
    controls: Mapping[str, int] = field(default_factory=dict, compare=False)
    is_exact: bool = field(default=False, compare=False)

    @property
    def triggers(self) -> tuple[str, ...]:
        """The beginnings of calls as text: the marker, or where a model forgets that, what is behind it."""
        trigger, rest = find_trigger(self.form, {})
        if self.form is not MISTRAL:
            return (str(trigger),)
        return str(trigger), str(rest[0])[:2]

    @property
    def inner_names(self) -> dict[int, str]:
        """The names of the control ids that stand within calls."""
        parts = (part for fixed in self.form.parts for part in split_controls(fixed, self.controls))
        ids = {part for part in parts if isinstance(part, int)}
        return {token: name for name, token in self.controls.items() if token in ids}


class EventStream:
    """What the steps of one answer mean, step by step.

    Another prompt that is read in the middle of the answer ends with the answer so far. The usage is that
    of the last one, without the answer.

    Args:
        tokenizer: decodes.
        n_prompt: tokens of the prompt.
        params: stops.
        continues: whether the answer's text carries on from the prompt's, or begins a text.
        calls: how to tell calls of tools, where some are offered. What looks like calls and is none is text.
        controls: the control ids that stops can name.
        clock: seconds, for `Usage`.

    Attributes:
        is_done: whether the answer has ended, though more steps may come.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        n_prompt: int,
        params: SamplingParams,
        *,
        continues: bool = False,
        calls: CallSyntax | None = None,
        controls: Mapping[str, int] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._answer = _AnswerText(tokenizer, params.stop, calls, continues=continues, controls=controls)
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._n_told = 0  # of the log-probabilities
        self._end: TokenLogprob | None = None
        self._reason = FinishReason.LENGTH
        self._n_prompt, self._n_reused = n_prompt, 0
        self._prefill_s = self._decode_s = 0.0
        self._n_drafted = self._n_taken = 0
        self._clock, self._is_reading, self._last = clock, True, clock()
        self.is_done = False

    def push(self, step: PromptProgress | Step) -> PromptProgress | TextDelta | CallDelta | None:
        """What `step` makes final."""
        match step:
            case PromptProgress():
                self._is_reading, self._n_reused = True, step.reused
                self._n_prompt = step.total - len(self._tokens)
                return step
            case Step():
                self._measure(step)
            case other:
                assert_never(other)
        if step.finish is FinishReason.STOP:
            self._reason, self.is_done, self._end = FinishReason.STOP, True, step.logprob
            return None
        self._tokens.append(step.token)
        if step.logprob is not None:
            self._logprobs.append(step.logprob)
        delta = self._answer.push(step.token)
        self.is_done = self._answer.is_stopped
        if isinstance(delta, TextDelta) and self._logprobs:
            told, self._n_told = self._n_told, len(self._logprobs)
            return replace(delta, logprobs=tuple(self._logprobs[told:]))
        return delta

    def finish(self) -> Iterator[TextDelta | CallDelta | Finished]:
        """The end of the answer: what was held back, and what it all comes to."""
        answer = self._answer
        if delta := answer.flush():
            yield delta
        reason = FinishReason.STOP if answer.is_stopped else self._reason
        found, rest = answer.calls() if reason is FinishReason.STOP else ((), "")
        if answer.is_of_calls and reason is FinishReason.STOP and not found:
            yield answer.as_text()
        elif rest.strip():
            yield TextDelta(rest)
        yield Finished(
            FinishReason.TOOL_CALLS if found else reason,
            tuple(self._tokens),
            tuple(self._logprobs),
            self._usage,
            found,
            (answer.said + rest).strip() if found and answer.is_of_calls else "",
            self._end,
        )

    @property
    def _usage(self) -> Usage:
        return Usage(
            self._n_prompt,
            self._n_reused,
            len(self._tokens),
            self._prefill_s,
            self._decode_s,
            self._n_drafted,
            self._n_taken,
        )

    def _measure(self, step: Step) -> None:
        self._n_drafted += step.drafted
        self._n_taken += step.is_taken
        now = self._clock()
        if self._is_reading:
            self._prefill_s += now - self._last
        elif step.finish is not FinishReason.STOP:
            self._decode_s += now - self._last
        self._is_reading, self._last = False, now


def stream_events(
    steps: Iterable[PromptProgress | Step],
    tokenizer: Tokenizer,
    n_prompt: int,
    params: SamplingParams,
    *,
    continues: bool = False,
    calls: CallSyntax | None = None,
    controls: Mapping[str, int] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[GenerationEvent]:
    """Tell what `steps` after a prompt of `n_prompt` tokens mean; see `EventStream`."""
    events = EventStream(
        tokenizer, n_prompt, params, continues=continues, calls=calls, controls=controls, clock=clock
    )
    for step in steps:
        if event := events.push(step):
            yield event
        if events.is_done:
            break
    yield from events.finish()


class _AnswerText:
    """The text of an answer while its tokens come: one for people, one of calls, or one of calls behind text.

    Attributes:
        said: the text for people, where tools are offered.
        text: the text of calls.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str],
        calls: CallSyntax | None,
        *,
        continues: bool,
        controls: Mapping[str, int] | None,
    ) -> None:
        self._tokenizer = tokenizer
        self._syntax = calls
        self._names = calls.inner_names if calls else {}
        self._reader = CallReader(calls.form) if calls and calls.is_exact else None
        self._decoder = IncrementalDecoder(tokenizer, continues=continues)
        self._stops = StopStrings(stop, controls)
        self._is_first = not continues
        self.is_of_calls = False
        self.is_stopped = False
        self.text = ""
        self.said = ""
        self._opening = ""  # may begin calls
        self._untold = ""  # of the calls

    def push(self, token: int) -> TextDelta | CallDelta | None:
        """What `token` makes final."""
        if self.is_of_calls and token in self._names:
            text = self._decoder.flush() + self._names[token]
            self._decoder = IncrementalDecoder(self._tokenizer)
            return self._add_call_text(text)
        if not self.is_of_calls and self._syntax and token == self._syntax.call_id and self._may_call:
            self.is_of_calls, self._is_first = True, False
            before = self._opening + self._decoder.flush()
            self._decoder, self._opening = IncrementalDecoder(self._tokenizer), ""
            return self._pass_stops(before, is_last=True) if before.strip() or self.said else None
        return self._delta(self._decoder.push(token), mark=self._stops.mark(token))

    def flush(self) -> TextDelta | CallDelta | None:
        """What was held back."""
        return None if self.is_stopped else self._delta(self._decoder.flush(), is_last=True)

    def as_text(self) -> TextDelta:
        """All of it, which looked like calls and is none."""
        text, is_stopped = self._stops.push(self.text)
        return TextDelta(text if is_stopped else text + self._stops.flush())

    def calls(self) -> tuple[tuple[ToolCall, ...], str]:
        """The calls in the text, none where it holds something else, and the text behind them."""
        if self._syntax is None:
            return (), ""
        if self.is_of_calls:
            found, rest = split_calls(self.text, lenient=self._syntax.in_text, form=self._syntax.form)
            told = tuple(self._reader.calls[: len(found)]) if self._reader else ()
            return (*told, *found[len(told) :]), rest
        names = self._syntax.anywhere
        found = parse_calls(self.said, lenient=True, form=self._syntax.form) if names else ()
        return found if {call.name for call in found} <= names else (), ""

    @property
    def _may_call(self) -> bool:
        return self._syntax is not None and (self._is_first or self._syntax.form.follows_text)

    def _delta(self, text: str, *, mark: str = "", is_last: bool = False) -> TextDelta | CallDelta | None:
        if self.is_of_calls:  # stops are for people's text
            return self._add_call_text(text)
        text, self._opening = self._opening + text + mark, ""
        if self._syntax and self._may_call and not (self.said or text.strip() or is_last):
            self._opening = text  # spaces in front of calls are no text
            return None
        if self._syntax and self._syntax.in_text and self._may_call:
            at, is_begun = self._find_calls(text)
            text, self._opening = (text, "") if is_last and not is_begun else (text[:at], text[at:])
            if is_begun:
                before, calls, self._opening = self._pass_stops(text, is_last=True), self._opening, ""
                self.is_of_calls = not self.is_stopped
                self.text = self._untold = calls if self.is_of_calls else ""
                return before or self._add_call_text("")
        return self._pass_stops(text, is_last=is_last)

    def _find_calls(self, text: str) -> tuple[int, bool]:
        """Find where calls begin in `text`, or may begin, else its end; and whether they do."""
        assert self._syntax is not None
        triggers = self._syntax.triggers
        if self._syntax.form.follows_text:
            found = [at for trigger in triggers if (at := text.find(trigger)) >= 0]
            held = max(find_overlap(text, trigger) for trigger in triggers)
            at = min(found) if found else len(text) - held
            return at if self.said or text[:at].strip() else 0, bool(found)
        begun = _SPACES.sub("", text)
        wanted = [_SPACES.sub("", trigger) for trigger in triggers]
        if any(begun.startswith(trigger) for trigger in wanted):
            return 0, True
        return (0 if any(trigger.startswith(begun) for trigger in wanted) else len(text)), False

    def _add_call_text(self, text: str) -> CallDelta | None:
        self.text += text
        text, self._untold = self._untold + text, ""
        return CallDelta(text, self._reader.push(text) if self._reader else ()) if text else None

    def _pass_stops(self, text: str, *, is_last: bool) -> TextDelta | None:
        self._is_first = self._is_first and not text
        text, self.is_stopped = self._stops.push(text)
        text += self._stops.flush() if is_last and not self.is_stopped else ""
        self.said += text if self._syntax else ""
        return TextDelta(text) if text else None
