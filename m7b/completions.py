"""Text completion in OpenAI's shape: a request, the samples it asks for, and the answer object.

Knows requests, text and ids; nothing about files, terminals or tensors.
"""

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, assert_never

from m7b.errors import UsageError
from m7b.generation import (
    MAX_SEED,
    Engine,
    Finished,
    GenerationEvent,
    PromptProgress,
    SamplingParams,
    TextDelta,
    TokenLogprob,
    Usage,
)
from m7b.stream import IncrementalDecoder, stream
from m7b.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A prompt and what to do with it. `n` samples; sample i draws with `params.seed` + i."""

    prompt: str
    params: SamplingParams
    n: int = 1
    echo: bool = False
    id: str | int | None = None

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UsageError(f"n is {self.n}", hint="it must be at least 1")
        if (self.params.seed or 0) + self.n - 1 > MAX_SEED:
            raise UsageError(
                f"seed is {self.params.seed} for {self.n} samples", hint=f"the last may be {MAX_SEED}"
            )


@dataclass(frozen=True, slots=True)
class Choice:
    """One finished sample."""

    index: int
    text: str
    finished: Finished
    logprobs: dict[str, Any] | None


_PARAMS = {
    "max_tokens": int,
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "typical_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "repeat_last_n": int,
    "seed": int,
    "logprobs": int,
}
_IGNORED = {"model", "user", "metadata"}  # they name the caller or the model and change no token
_OTHER = {"id", "prompt", "n", "echo", "stop", "logit_bias"}


def parse_request(fields: Mapping[str, Any], defaults: CompletionRequest) -> CompletionRequest:
    """The request that a JSON object describes; `defaults` gives what it leaves out.

    Raises:
        UsageError: a field is unknown, of the wrong type or out of range.
    """
    fields = {name: value for name, value in fields.items() if value is not None}
    unknown = sorted(fields.keys() - _PARAMS.keys() - _IGNORED - _OTHER)
    if unknown:
        raise UsageError(
            f"unknown field {unknown[0]!r}", hint=f"known are {', '.join(sorted(_OTHER | _PARAMS.keys()))}"
        )
    prompt = fields.get("prompt")
    if not isinstance(prompt, str):
        raise UsageError("prompt must be a string")
    given = {name: _typed(name, fields[name], kind) for name, kind in _PARAMS.items() if name in fields}
    if "stop" in fields:
        given["stop"] = _stop(fields["stop"])
    if "logit_bias" in fields:
        given["logit_bias"] = _logit_bias(fields["logit_bias"])
    echo = fields.get("echo", defaults.echo)
    if not isinstance(echo, bool):
        raise UsageError("echo must be true or false")
    return CompletionRequest(
        prompt=prompt,
        params=replace(defaults.params, **given),
        n=_typed("n", fields.get("n", defaults.n), int),
        echo=echo,
        id=fields.get("id"),
    )


class Completion:
    """One request on its way: pull its events, then take the answer.

    Args:
        engine: generates.
        tokenizer: encodes and decodes.
        request: what to do.

    Raises:
        UsageError: there is nothing to continue from.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, request: CompletionRequest) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self.request = request
        self._ids = tokenizer.encode(request.prompt, bos=tokenizer.adds_bos)
        if not self._ids:
            raise UsageError(
                "the prompt is empty", hint="this model needs at least one character to continue from"
            )
        self.choices: list[Choice] = []
        self._prompt_logprobs: list[TokenLogprob] = []  # of all but the first, where they are wanted

    def samples(self) -> Iterator[Iterator[GenerationEvent]]:
        """The events of each sample in turn; each must be pulled to its end before the next."""
        self._engine.forget()  # the same seed gives the same text, whatever was asked before
        for index in range(self.request.n):
            yield self._sample(index)

    def _sample(self, index: int) -> Iterator[GenerationEvent]:
        request = self.request
        params = request.params
        if params.seed is not None:
            params = replace(params, seed=params.seed + index)
        if request.echo and params.logprobs is not None and not self._prompt_logprobs:
            self._prompt_logprobs = list(self._engine.score(self._ids, params.logprobs))
            self._engine.forget()
        text = request.prompt if request.echo else ""
        if text:
            yield TextDelta(text)
        for event in stream(
            self._engine, self._tokenizer, self._ids, params, continues=bool(self.request.prompt)
        ):
            match event:
                case TextDelta():
                    text += event.text
                case Finished():
                    self.choices.append(Choice(index, text, event, self._logprobs(event)))
                case PromptProgress():
                    pass
                case other:
                    assert_never(other)
            yield event

    def _logprobs(self, finished: Finished) -> dict[str, Any] | None:
        """OpenAI's legacy `logprobs` object, None where it was not asked for."""
        if self.request.params.logprobs is None:
            return None
        entries: list[TokenLogprob | None] = [*self._prompt_logprobs, *finished.logprobs]
        tokens = [entry.token for entry in entries if entry]
        if self.request.echo:
            entries = [None, *entries]  # nothing comes before the first token, so it has no probability
            tokens = [self._ids[0], *tokens]
        continues = bool(self.request.prompt) and not self.request.echo
        decoder = IncrementalDecoder(self._tokenizer, continues=continues)
        offsets, length = [], 0
        for token in tokens:
            offsets.append(length)
            length += len(decoder.push(token))
        return {
            "tokens": [token_text(self._tokenizer, token) for token in tokens],
            "token_logprobs": [entry.logprob if entry else None for entry in entries],
            "top_logprobs": [self._named(entry) if entry else None for entry in entries],
            "text_offset": offsets,
        }

    def _named(self, entry: TokenLogprob) -> dict[str, float]:
        """Alternatives and the token itself by their text; of two that read alike, the likelier stands."""
        named: dict[str, float] = {}
        for token, logprob in (*entry.top, (entry.token, entry.logprob)):
            named.setdefault(token_text(self._tokenizer, token), logprob)
        return named


def answer(completion: Completion, model: str, load_s: float) -> dict[str, Any]:
    """The finished `completion` as OpenAI's `text_completion` object, with our `token_ids` and `timings`."""
    usages = [choice.finished.usage for choice in completion.choices]
    completion_tokens = sum(usage.completion_tokens for usage in usages)
    return {
        "id": f"cmpl-{uuid.uuid4().hex}" if completion.request.id is None else completion.request.id,
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": choice.index,
                "text": choice.text,
                "token_ids": list(choice.finished.tokens),
                "finish_reason": choice.finished.reason.value,
                "logprobs": choice.logprobs,
            }
            for choice in completion.choices
        ],
        "usage": {
            "prompt_tokens": usages[0].prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": usages[0].prompt_tokens + completion_tokens,
        },
        "timings": _timings(usages, load_s),
    }


def _timings(usages: Sequence[Usage], load_s: float) -> dict[str, float | None]:
    """Seconds and tokens per second, summed over samples; speeds are null where nothing was measured."""
    prefill_s, decode_s = sum(u.prefill_s for u in usages), sum(u.decode_s for u in usages)
    n_read = sum(u.prompt_tokens - u.reused_tokens for u in usages)
    n_decoded = sum(max(0, u.completion_tokens - 1) for u in usages)
    return {
        "load_s": load_s,
        "ttft_s": usages[0].prefill_s,
        "prefill_s": prefill_s,
        "decode_s": decode_s,
        "prefill_tps": n_read / prefill_s if prefill_s > 0 else None,
        "decode_tps": n_decoded / decode_s if decode_s > 0 else None,
    }


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """What one token adds in the middle of a text; its vocabulary entry where that is no whole text."""
    decoder = IncrementalDecoder(tokenizer, continues=True)
    text = decoder.push(token) + decoder.flush()
    return tokenizer.piece(token) if not text or "\ufffd" in text else text


def _typed(name: str, value: Any, kind: type) -> Any:
    """`value` as `kind`; an integer passes as a float, a bool as neither."""
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise UsageError(f"{name} is {json.dumps(value)[:60]}", hint=f"it must be {_KIND_NAMES[kind]}")
    try:
        return kind(value)
    except OverflowError:
        raise UsageError(f"{name} is beyond all numbers", hint="write it smaller") from None


_KIND_NAMES = {int: "an integer", float: "a number"}


def _stop(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise UsageError("stop must be a string or a list of strings")
    return tuple(stops)


def _logit_bias(value: Any) -> dict[int, float]:
    if not isinstance(value, dict) or not all(key.isdecimal() and len(key) < 12 for key in value):
        raise UsageError('logit_bias must map token ids to numbers, like {"15043": -100}')
    return {int(key): _typed(f"logit_bias of {key}", bias, float) for key, bias in value.items()}
