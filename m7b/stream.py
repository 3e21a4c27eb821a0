"""From engine steps to text that is final: incremental decoding and stop strings.

Knows tokenizers and the engine's contract; knows nothing about terminals.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import assert_never

from m7b.calls import parse_calls
from m7b.generation import (
    CallDelta,
    Engine,
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

REPLACEMENT = "\ufffd"
"""What decoding gives for a byte that is no character."""
_HOLD = 3  # an unfinished UTF-8 character is at most three bytes, each shown as U+FFFD
_CALLS = re.compile(r"\s*\[\s*[{T]")  # a list of objects, or the marker of calls spelled out
_UNDECIDED = re.compile(r"\s*(\[\s*)?")
_LONG = 32  # tokens of undecodable bytes after which a cut is tried


class IncrementalDecoder:
    """Turns a growing list of ids into pieces of text that never change afterwards.

    Decoding one id at a time would lose every space between words, so each decode
    has left context. Once all text is final, any whole letter serves as context as well as the ids
    that were: it stands in for them. A character that arrives byte by byte is held until it is whole.

    Args:
        tokenizer: decodes.
        continues: whether the ids carry on from a text, so that a space in front of them counts.
    """

    def __init__(self, tokenizer: Tokenizer, *, continues: bool = False) -> None:
        self._tokenizer = tokenizer
        self._anchor = tokenizer.encode("a", bos=False)
        self._anchor_length = len(tokenizer.decode(self._anchor))
        self._window: list[int] = []
        self._emitted = 0  # characters of the window's text
        if continues:
            self._restart([])

    def push(self, token: int) -> str:
        """The text that `token` makes final."""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        held = min(_HOLD, len(text) - len(text.rstrip(REPLACEMENT)))
        piece = text[self._emitted : len(text) - held]
        self._emitted += len(piece)
        if held == 0 and text:
            self._restart([])
        elif len(self._window) % _LONG == 0:
            self._shorten(text)
        return piece

    def flush(self) -> str:
        """What was held back: an unfinished character, as U+FFFD."""
        text = self._tokenizer.decode(self._window)[self._emitted :]
        self._emitted += len(text)
        return text

    def _restart(self, tail: list[int]) -> None:
        self._window = [*self._anchor, *tail]
        self._emitted = self._anchor_length

    def _shorten(self, text: str) -> None:
        """Drop the front of a long run of undecodable bytes, where it can be cut without changing it."""
        decode = self._tokenizer.decode
        pending = len(text) - self._emitted
        for n_kept in range(_HOLD, _LONG // 2):
            head, tail = self._window[:-n_kept], self._window[-n_kept:]
            kept = decode([*self._anchor, *tail])[self._anchor_length :]
            if decode(head) + kept == text and len(kept) >= pending:
                self._restart(tail)
                self._emitted += len(kept) - pending
                return


class StopStrings:
    """Passes text through up to the first stop string, holding back what may be the start of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._pending = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that is safe to show, and whether a stop string ended it.

        The stop string that is complete first ends the text, however the text is cut into pieces.
        """
        self._pending += text
        found = [(at + len(stop), at) for stop in self._stops if (at := self._pending.find(stop)) >= 0]
        if found:
            safe = self._pending[: min(found)[1]]
            self._pending = ""
            return safe, True
        held = max((_overlap(self._pending, stop) for stop in self._stops), default=0)
        cut = len(self._pending) - held
        safe, self._pending = self._pending[:cut], self._pending[cut:]
        return safe, False

    def flush(self) -> str:
        """The text that was held back and turned out to be no stop string."""
        held, self._pending = self._pending, ""
        return held


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """How calls of tools are told from text.

    They begin with `call_id` where the model has such an id; with `in_text`, an answer that begins with
    a list of objects is taken for calls as well. Calls of the tools named in `anywhere` count behind prose
    too, once the answer is over: what no grammar keeps in order may stand there.
    """

    call_id: int | None
    in_text: bool
    anywhere: frozenset[str] = frozenset()


def stream(
    engine: Engine,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    params: SamplingParams,
    *,
    continues: bool = False,
    calls: CallSyntax | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[GenerationEvent]:
    """Continue `ids` and tell what happens, as events; the last one is `Finished`.

    Args:
        engine: generates.
        tokenizer: decodes.
        ids: the prompt.
        params: sampling and stops.
        continues: whether the answer's text carries on from the prompt's, or begins a text.
        calls: how to tell calls of tools, where some are offered. What looks like calls and is none is text.
        clock: seconds, for `Usage`.
    """
    steps = engine.generate(ids, params)
    return stream_steps(steps, tokenizer, len(ids), params, continues=continues, calls=calls, clock=clock)


def stream_steps(
    steps: Iterable[PromptProgress | Step],
    tokenizer: Tokenizer,
    n_prompt: int,
    params: SamplingParams,
    *,
    continues: bool = False,
    calls: CallSyntax | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[GenerationEvent]:
    """Tell what `steps` after a prompt of `n_prompt` tokens mean; see `stream`.

    Another prompt that is read in the middle of the answer ends with the answer so far. The usage is that
    of the last one, without the answer.
    """
    answer = _AnswerText(tokenizer, params.stop, calls, continues=continues)
    tokens: list[int] = []
    logprobs: list[TokenLogprob] = []
    reason, reused = FinishReason.LENGTH, 0
    prefill_s = decode_s = 0.0
    is_reading, last = True, clock()
    for step in steps:
        match step:
            case PromptProgress():
                is_reading, n_prompt, reused = True, step.total - len(tokens), step.reused
                yield step
                continue
            case Step():
                pass
            case other:
                assert_never(other)
        now = clock()
        if is_reading:
            prefill_s += now - last
        elif step.finish is not FinishReason.STOP:
            decode_s += now - last
        is_reading, last = False, now
        if step.finish is FinishReason.STOP:
            reason = FinishReason.STOP
            break
        tokens.append(step.token)
        if step.logprob is not None:
            logprobs.append(step.logprob)
        if delta := answer.push(step.token):
            yield delta
        if answer.is_stopped:
            break
    if delta := answer.flush():
        yield delta
    reason = FinishReason.STOP if answer.is_stopped else reason
    found = answer.calls() if reason is FinishReason.STOP else ()
    if answer.is_of_calls and reason is FinishReason.STOP and not found:
        yield answer.as_text()
    yield Finished(
        FinishReason.TOOL_CALLS if found else reason,
        tuple(tokens),
        tuple(logprobs),
        Usage(n_prompt, reused, len(tokens), prefill_s, decode_s),
        found,
    )


class _AnswerText:
    """The text of an answer while its tokens come: one for people, or one of calls."""

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str], calls: CallSyntax | None, *, continues: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._syntax = calls
        self._decoder = IncrementalDecoder(tokenizer, continues=continues)
        self._stops = StopStrings(stop)
        self._is_first = not continues
        self.is_of_calls = False
        self.is_stopped = False
        self.text = ""  # of the calls
        self._said = ""  # to people, where it may hold calls
        self._opening = ""  # may begin both

    def push(self, token: int) -> TextDelta | CallDelta | None:
        """What `token` makes final."""
        if self._is_first and self._syntax and token == self._syntax.call_id:
            self.is_of_calls, self._is_first = True, False
            self._decoder = IncrementalDecoder(self._tokenizer)
            return None
        return self._delta(self._decoder.push(token))

    def flush(self) -> TextDelta | CallDelta | None:
        """What was held back."""
        return None if self.is_stopped else self._delta(self._decoder.flush(), is_last=True)

    def as_text(self) -> TextDelta:
        """All of it, which looked like calls and is none."""
        text, is_stopped = self._stops.push(self.text)
        return TextDelta(text if is_stopped else text + self._stops.flush())

    def calls(self) -> tuple[ToolCall, ...]:
        """The calls in the text, none where it holds something else."""
        if self._syntax is None:
            return ()
        if self.is_of_calls:
            return parse_calls(self.text, lenient=self._syntax.in_text)
        found = parse_calls(self._said, lenient=True) if self._syntax.anywhere else ()
        return found if {call.name for call in found} <= self._syntax.anywhere else ()

    def _delta(self, text: str, *, is_last: bool = False) -> TextDelta | CallDelta | None:
        text, self._opening = self._opening + text, ""
        if self._is_first and self._syntax and self._syntax.in_text:
            if _UNDECIDED.fullmatch(text) and not is_last:
                self._opening = text
                return None
            self.is_of_calls = bool(_CALLS.match(text))
        self._is_first = self._is_first and not text
        if self.is_of_calls:  # stops are for people's text
            self.text += text
            return CallDelta(text) if text else None
        text, self.is_stopped = self._stops.push(text)
        text += self._stops.flush() if is_last and not self.is_stopped else ""
        self._said += text if self._syntax and self._syntax.anywhere else ""
        return TextDelta(text) if text else None


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
