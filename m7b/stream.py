"""From engine steps to text that is final: incremental decoding and stop strings.

Knows tokenizers and the engine's contract; knows nothing about terminals.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import assert_never

from m7b.generation import (
    Engine,
    Finished,
    FinishReason,
    GenerationEvent,
    PromptProgress,
    SamplingParams,
    Step,
    TextDelta,
    TokenLogprob,
    Usage,
)
from m7b.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"
"""What decoding gives for a byte that is no character."""
_HOLD = 3  # an unfinished UTF-8 character is at most three bytes, each shown as U+FFFD
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


def stream(
    engine: Engine,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    params: SamplingParams,
    *,
    continues: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[GenerationEvent]:
    """Continue `ids` and tell what happens, as events; the last one is `Finished`.

    Args:
        engine: generates.
        tokenizer: decodes.
        ids: the prompt.
        params: sampling and stops.
        continues: whether the answer's text carries on from the prompt's, or begins a text.
        clock: seconds, for `Usage`.
    """
    steps = engine.generate(ids, params)
    return events_of(steps, tokenizer, len(ids), params, continues=continues, clock=clock)


def events_of(
    steps: Iterable[PromptProgress | Step],
    tokenizer: Tokenizer,
    n_prompt: int,
    params: SamplingParams,
    *,
    continues: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[GenerationEvent]:
    """Tell what `steps` after a prompt of `n_prompt` tokens mean; see `stream`.

    Another prompt that is read in the middle of the answer ends with the answer so far. The usage is that
    of the last one, without the answer.
    """
    decoder, stops = IncrementalDecoder(tokenizer, continues=continues), StopStrings(params.stop)
    tokens: list[int] = []
    logprobs: list[TokenLogprob] = []
    reason, stopped, reused = FinishReason.LENGTH, False, 0
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
        text, stopped = stops.push(decoder.push(step.token))
        if text:
            yield TextDelta(text)
        if stopped:
            break
    if not stopped:
        text, stopped = stops.push(decoder.flush())
        if text := text if stopped else text + stops.flush():
            yield TextDelta(text)
    yield Finished(
        FinishReason.STOP if stopped else reason,
        tuple(tokens),
        tuple(logprobs),
        Usage(n_prompt, reused, len(tokens), prefill_s, decode_s),
    )


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
