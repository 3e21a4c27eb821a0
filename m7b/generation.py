"""The light contract with the engine: what may be asked of it and what it answers.

Knows ids, numbers and text; imports nothing heavy, so that every layer can speak it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from m7b.errors import UsageError

MAX_SEED = 2**63 - 1
MAX_BIAS = 1_000_000


class Matcher(Protocol):
    """Where one answer stands in its grammar."""

    def forced(self) -> list[int]:
        """The ids that follow because the grammar leaves no choice of text, none where it does."""
        ...

    def allowed(self) -> bytes | None:
        """The ids that may follow, a bit for each, id 0 lowest in the first byte; None allows all."""
        ...

    def accept(self, token: int) -> None:
        """Go on behind `token`, which must be allowed."""
        ...


class Constraint(Protocol):
    """A grammar that answers keep to, whatever the sampling."""

    def matcher(self) -> Matcher:
        """The beginning of an answer."""
        ...


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose each next token, and when to stop.

    `temperature` 0 is argmax. `top_k` 0, `top_p` 1, `min_p` 0, `typical_p` 1, `repetition_penalty` 1
    and the other penalties at 0 switch that filter off. The penalties look at the last
    `repeat_last_n` tokens of prompt and answer (-1: all of them). `seed` None draws one.
    `logprobs` is the number of alternatives to report per token, None for no report. An answer under
    a `constraint` keeps to it, or ends for want of room.

    Raises:
        UsageError: a value is outside its range.
    """

    max_tokens: int = 256
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_last_n: int = -1
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    logprobs: int | None = None
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        _check("max_tokens", self.max_tokens, low=0)
        _check("temperature", self.temperature, low=0, high=100)
        _check("top_p", self.top_p, low=0, high=1)
        _check("top_k", self.top_k, low=0)
        _check("min_p", self.min_p, low=0, high=1)
        _check("typical_p", self.typical_p, low=0, high=1)
        _check("repetition_penalty", self.repetition_penalty, low=0.01, high=100)
        _check("presence_penalty", self.presence_penalty, low=-100, high=100)
        _check("frequency_penalty", self.frequency_penalty, low=-100, high=100)
        _check("repeat_last_n", self.repeat_last_n, low=-1)
        _check("logprobs", self.logprobs or 0, low=0)
        _check("seed", self.seed or 0, low=0, high=MAX_SEED)
        if "" in self.stop:
            raise UsageError("a stop string is empty", hint="leave it out")
        for token, bias in self.logit_bias.items():
            if bias != -math.inf:
                _check(f"logit_bias of token {token}", bias, low=-MAX_BIAS, high=MAX_BIAS)


class Quant(StrEnum):
    """How the weights of linears are held. On the CPU `int8` is the weights of q8_0 times
    activations of 8 bits instead of 16, on accelerators LLM.int8()."""

    NONE = "none"
    INT8 = "int8"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"
    NF4 = "nf4"
    FP4 = "fp4"


class DType(StrEnum):
    """The dtypes a model can run in."""

    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What the user may choose about a model before it runs.

    `threads` None is one for each physical core. `dtype` None is the checkpoint's own, but bfloat16 for
    float16, which CPUs multiply slowly. `quant` None leaves the weights as they are stored. `window` None is
    the checkpoint's own and 0 is off. `ctx_size` None is the checkpoint's own. `max_memory` (bytes by device)
    is for `device` auto.
    """

    threads: int | None = None
    dtype: str | None = None
    quant: str | None = None
    device: str = "cpu"
    window: int | None = None
    ctx_size: int | None = None
    prefill_chunk: int = 512
    max_memory: dict[int | str, int] | None = None


class QuantizeTarget(StrEnum):
    """What `m7b quantize` turns weights into: the first four are one GGUF file, the others a folder."""

    Q4_0 = "q4_0"
    Q8_0 = "q8_0"
    F16 = "f16"
    BF16 = "bf16"
    NF4 = "nf4"
    FP4 = "fp4"
    INT8 = "int8"

    @property
    def is_gguf(self) -> bool:
        """Whether the result is one GGUF file."""
        return self in (QuantizeTarget.Q4_0, QuantizeTarget.Q8_0, QuantizeTarget.F16, QuantizeTarget.BF16)


class FinishReason(StrEnum):
    """Why an answer ended: a stop id or stop string, no room left, or calls of tools to make."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The model's own log-probability of one token, before any sampling filter.

    `top` holds the most likely alternatives, best first, as (id, log-probability).
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """`done` of `total` prompt tokens are in the cache; `reused` of them were there before."""

    done: int
    total: int
    reused: int


@dataclass(frozen=True, slots=True)
class Step:
    """One sampled token. The last step of an answer has a `finish`; a stop id is never text."""

    token: int
    logprob: TokenLogprob | None
    finish: FinishReason | None


class Engine(Protocol):
    """A model that continues token ids. Knows nothing about text."""

    def generate(self, ids: Sequence[int], params: SamplingParams) -> Iterator[PromptProgress | Step]:
        """Continue `ids`: progress while the prompt is read, then one step a token."""
        ...

    def forget(self) -> None:
        """Drop all that earlier calls left, so that the next answer depends on its prompt alone."""
        ...

    def score(self, ids: Sequence[int], top: int = 0) -> Iterator[TokenLogprob]:
        """The log-probability of each of `ids[1:]` given all before it."""
        ...


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts, and seconds as measured by the caller's clock.

    `prefill_s` runs from the request to the first token, `decode_s` from the first to the last.
    """

    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int
    prefill_s: float
    decode_s: float

    @property
    def prefill_tps(self) -> float | None:
        """Prompt tokens read per second, None where nothing was measured."""
        return (self.prompt_tokens - self.reused_tokens) / self.prefill_s if self.prefill_s > 0 else None

    @property
    def decode_tps(self) -> float | None:
        """Tokens per second after the first, None where nothing was measured."""
        return max(0, self.completion_tokens - 1) / self.decode_s if self.decode_s > 0 else None


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text that is final: no later token and no stop string can take it back."""

    text: str


@dataclass(frozen=True, slots=True)
class CallDelta:
    """More of the text of tool calls as they form: to show, not to keep."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asks for: `arguments` is the text of a JSON object, `id` nine characters."""

    name: str
    arguments: str
    id: str

    def as_json(self) -> dict[str, Any]:
        """The call as OpenAI writes it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer, with all its token ids (a stop id excluded), and the `calls` that it asks for."""

    reason: FinishReason
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    usage: Usage
    calls: tuple[ToolCall, ...] = ()


GenerationEvent = PromptProgress | TextDelta | CallDelta | Finished


def _check(name: str, value: float, low: float, high: float = math.inf) -> None:
    if not low <= value <= high or value == math.inf:  # false for NaN as well
        bounds = f"from {low} to {high}" if high < math.inf else f"at least {low}"
        raise UsageError(f"{name} is {value}", hint=f"it must be {bounds}")
