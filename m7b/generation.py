"""The light contract with the engine: what may be asked of it and what it answers.

Knows ids, numbers and text; imports nothing heavy, so that every layer can speak it.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from m7b.errors import UsageError
from m7b.options import check_options, check_range, option, option_mapping

MAX_SEED = 2**63 - 1
MAX_BIAS = 1_000_000
MAX_TOKENS = 1 << 31
MAX_SCALE = 1_000


def read_bias(text: str) -> tuple[int, float]:
    """The token and the bias in `ID=BIAS`.

    Raises:
        ValueError: there are none.
    """
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise ValueError(f"{text!r} is not of the form ID=BIAS, such as 15043=-5") from None


@dataclass(frozen=True, slots=True)
class AdapterChoice:
    """An adapter that is meant, by path or by the name that `m7b list` shows, and the share that is added."""

    name: str
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.name:
            raise UsageError("an adapter has no name", hint="name its folder or file, or what m7b list shows")
        check_range(f"the scale of {self.name}", self.scale, low=-MAX_SCALE, high=MAX_SCALE)


def read_adapter(text: str) -> AdapterChoice:
    """The adapter in `PATH` or `PATH:SCALE`; what is there under the whole text is meant by it.

    Raises:
        UsageError: it is there, and the scale is no number, or one out of range.
    """
    name, _, scale = text.rpartition(":")
    try:
        number = float(scale)
    except ValueError:
        if os.path.exists(name) and not os.path.exists(text):
            raise UsageError(f"the scale of {name} is {scale!r}, which is no number") from None
        return AdapterChoice(text)
    return AdapterChoice(text) if not name or os.path.exists(text) else AdapterChoice(name, number)


def read_adapters(given: "str | Sequence[str | AdapterChoice]") -> tuple[AdapterChoice, ...]:
    """The adapters in a text or several, as `read_adapter` reads them; choices stay as they are."""
    each = [given] if isinstance(given, str) else given
    return tuple(read_adapter(one) if isinstance(one, str) else one for one in each)


class Matcher(Protocol):
    """Where one answer stands in its grammar."""

    def find_forced(self) -> list[int]:
        """The ids that follow because the grammar leaves no choice of text, none where it does."""
        ...

    def pack_mask(self) -> bytes | None:
        """The ids that may follow, a bit for each, id 0 lowest in the first byte; None allows all."""
        ...

    def accept(self, token: int) -> None:
        """Go on behind `token`, which must be allowed."""
        ...


class Constraint(Protocol):
    """A grammar that answers keep to, whatever the sampling."""

    def start_matcher(self) -> Matcher:
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

    max_tokens: int = option(256, "Most tokens to generate.", low=0, short="-n", sample=1024)
    temperature: float = option(
        0.7, "Randomness; 0 takes the most likely token.", low=0, high=100, sample=0.7
    )
    top_p: float = option(
        1.0, "Keep the likeliest tokens up to this mass; 1 is off.", low=0, high=1, sample=1.0
    )
    top_k: int = option(0, "Keep this many of the likeliest tokens; 0 is off.", low=0, sample=0)
    min_p: float = option(
        0.0,
        "Drop tokens less likely than this times the likeliest; 0 is off.",
        low=0,
        high=1,
        sample=0.0,
    )
    typical_p: float = option(
        1.0, "Keep the most typical tokens up to this mass; 1 is off.", low=0, high=1, sample=1.0
    )
    repetition_penalty: float = option(
        1.0, "Divide the logits of seen tokens; 1 is off.", low=0.01, high=100, sample=1.0
    )
    presence_penalty: float = option(
        0.0, "Subtract once from each seen token; 0 is off.", low=-100, high=100, sample=0.0
    )
    frequency_penalty: float = option(
        0.0,
        "Subtract for every time a token was seen; 0 is off.",
        low=-100,
        high=100,
        sample=0.0,
    )
    repeat_last_n: int = option(-1, "Tokens that the penalties look back on; -1 is all.", low=-1, sample=-1)
    logit_bias: Mapping[int, float] = option_mapping(
        "Add to one token's logit; can be repeated.",
        kind=read_bias,
        metavar="ID=BIAS",
        collect=dict,
        in_chat=False,
    )
    seed: int | None = option(None, "Same seed, same text.", low=0, high=MAX_SEED, sample=1)
    stop: tuple[str, ...] = option((), "End before this text; can be repeated.", collect=tuple)
    logprobs: int | None = option(
        None,
        "With --json: report this many alternatives per token.",
        low=0,
        metavar="K",
        is_apart=True,
        in_chat=False,
    )
    stop_ids: frozenset[int] = frozenset()
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        check_options(self)
        if "" in self.stop:
            raise UsageError("a stop string is empty", hint="leave it out")
        for token, bias in self.logit_bias.items():
            if bias != -math.inf:
                check_range(f"logit_bias of token {token}", bias, low=-MAX_BIAS, high=MAX_BIAS)


class Quant(StrEnum):
    """How the weights of linears are held. On the CPU `int8` is the weights of q8_0 times
    activations of 8 bits instead of 16, on accelerators LLM.int8()."""

    NONE = "none"
    INT8 = "int8"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"
    NF4 = "nf4"
    FP4 = "fp4"


class Draft(StrEnum):
    """Where guesses at the next tokens come from, several of which are checked in one pass."""

    OFF = "off"
    LOOKUP = "lookup"


class KvType(StrEnum):
    """How keys and values are held: in bfloat16, or 32 of them in 8 bits under one scale."""

    BF16 = "bf16"
    Q8_0 = "q8_0"


class DType(StrEnum):
    """The dtypes a model can run in."""

    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What the user may choose about a model before it runs.

    `threads` None is one for each physical core. `dtype` None is the checkpoint's own, but bfloat16 for
    float16, which CPUs multiply slowly. `quant` None leaves the weights as they are stored. `kv_type` None
    keeps keys and values in the `dtype` that the model runs in. `window` None is
    the checkpoint's own and 0 is off. `ctx_size` None is the checkpoint's own. What
    each `adapter` says is added. `max_memory` (bytes by device)
    is for `device` auto.
    """

    threads: int | None = option(
        None,
        "CPU threads; one for each physical core if not given.",
        low=1,
        high=1 << 10,
        is_strict=True,
        sample=4,
    )
    dtype: str | None = option(
        None, "Number format to run in; the checkpoint's own if not given.", kind=DType, sample="bfloat16"
    )
    quant: str | None = option(
        None,
        "Round the weights as they are loaded; if not given, GGUF's blocks stay as stored.",
        kind=Quant,
        sample="q8_0",
    )
    device: str = option(
        "cpu", "cpu, cuda, cuda:N, mps, or auto to spread over all of them and the disk.", sample="cpu"
    )
    window: int | None = option(
        None,
        "Sliding window in tokens, instead of the checkpoint's own.",
        low=1,
        high=MAX_TOKENS,
        is_strict=True,
        words={"off": 0},
        metavar="N|off",
        sample=4096,
    )
    ctx_size: int | None = option(
        None,
        "Most tokens of prompt and answer together; the checkpoint's own if not given.",
        low=1,
        high=MAX_TOKENS,
        is_strict=True,
        sample=8192,
    )
    prefill_chunk: int = option(
        512, "Prompt tokens read in one pass.", low=1, high=MAX_TOKENS, is_strict=True, sample=512
    )
    draft: str = option(
        Draft.OFF,
        "lookup guesses the next tokens by the text so far and checks several in one pass; the answer stays.",
        kind=Draft,
        sample="off",
    )
    adapter: tuple[AdapterChoice, ...] = option(
        (),
        "Add a low-rank adapter, or SCALE of it; can be repeated.",
        kind=read_adapter,
        metavar="PATH|NAME[:SCALE]",
        collect=tuple,
        in_chat=False,
    )
    kv_type: str | None = option(
        None,
        "How keys and values are held; in the number format that runs if not given. q8_0 takes half of bf16.",
        kind=KvType,
        sample="bf16",
    )
    max_memory: dict[int | str, int] | None = None

    def __post_init__(self) -> None:
        check_options(self)


class QuantizeTarget(StrEnum):
    """What `m7b quantize` turns weights into: the last three are a folder, the others one GGUF file."""

    Q4_K_M = "q4_k_m"
    Q4_K_S = "q4_k_s"
    Q5_K_M = "q5_k_m"
    Q6_K = "q6_k"
    Q3_K_M = "q3_k_m"
    IQ4_NL = "iq4_nl"
    IQ4_XS = "iq4_xs"
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
        return self not in (QuantizeTarget.NF4, QuantizeTarget.FP4, QuantizeTarget.INT8)

    @property
    def is_searched(self) -> bool:
        """Whether scales are searched for, so that it matters which columns do."""
        exact = (QuantizeTarget.Q8_0, QuantizeTarget.F16, QuantizeTarget.BF16)
        return self.is_gguf and self not in exact


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
class Likelihood:
    """The model's log-probability of an ending, and whether it `is_greedy`: what argmax would have chosen."""

    logprob: float
    is_greedy: bool


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """`done` of `total` prompt tokens are in the cache; `reused` of them were there before."""

    done: int
    total: int
    reused: int


@dataclass(frozen=True, slots=True)
class Step:
    """One sampled token. The last step of an answer has a `finish`; a stop id is never text.

    The first step of a pass says how many tokens were `drafted` for it; what `is_taken` was one of those.
    """

    token: int
    logprob: TokenLogprob | None
    finish: FinishReason | None
    drafted: int = field(default=0, compare=False)  # they say how the answer came, not what it is
    is_taken: bool = field(default=False, compare=False)


class SequenceHandle(Protocol):
    """A prompt that an engine was given to continue, beside others."""

    @property
    def is_done(self) -> bool:
        """Whether nothing more will happen."""
        ...

    @property
    def has_events(self) -> bool:
        """Whether something happened that nobody has taken yet."""
        ...

    def cancel(self) -> None:
        """Want no more of it."""
        ...

    def take(self) -> Sequence[PromptProgress | Step]:
        """What has happened since the last call, in order.

        Raises:
            M7bError: the sequence failed, once all that came before is taken.
        """
        ...


class JudgementHandle(Protocol):
    """A text that an engine was given to judge how it ends, beside others."""

    @property
    def is_done(self) -> bool:
        """Whether nothing more will happen."""
        ...

    def cancel(self) -> None:
        """Want no more of it."""
        ...

    def take(self) -> Sequence[Likelihood]:
        """The likelihood of each ending, once it is done.

        Raises:
            M7bError: the reading failed.
        """
        ...


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts, and seconds as measured by the caller's clock.

    `prefill_s` runs from the request to the first token, `decode_s` from the first to the last. Guesses at
    tokens were `drafted_tokens`, of which the answer took `taken_tokens`.
    """

    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int
    prefill_s: float
    decode_s: float
    drafted_tokens: int = 0
    taken_tokens: int = 0

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
    """Text that is final: no later token and no stop string can take it back.

    `logprobs` are those of the tokens since the last one, where they are wanted.
    """

    text: str
    logprobs: tuple[TokenLogprob, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class CallPart:
    """More of one call: its name first, then its arguments in pieces. `index` is its place in the answer."""

    index: int
    id: str
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class CallDelta:
    """More of the text of tool calls as they form: to show, not to keep.

    Where a grammar keeps calls in order, `parts` are what it adds to calls for sure.
    """

    text: str
    parts: tuple[CallPart, ...] = ()


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
    """The end of an answer, with all its token ids (a stop id excluded).

    `calls` are those that it asks for, `beside` the text that stands beside them. `end` tells of the stop
    id, where log-probabilities are wanted.
    """

    reason: FinishReason
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    usage: Usage
    calls: tuple[ToolCall, ...] = ()
    beside: str = ""
    end: TokenLogprob | None = field(default=None, compare=False)


GenerationEvent = PromptProgress | TextDelta | CallDelta | Finished
