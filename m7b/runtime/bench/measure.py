"""How fast an engine reads and decodes at a depth, and what it takes. Knows engines; prints nothing."""

import resource
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, suppress

import torch

from m7b.bench.runs import Answered, KnownAnswer, Reads, time_steps
from m7b.generation import EngineOptions, PromptProgress, SamplingParams, Step
from m7b.runtime.adapters import Mix
from m7b.runtime.bench.together import decode_together, prefill_together
from m7b.runtime.bench.weights import count_weight_bytes, describe_weights
from m7b.runtime.cache import RollingKVCache
from m7b.runtime.checkpoints import Checkpoint
from m7b.runtime.checkpoints.random import cut
from m7b.runtime.engine import Engine
from m7b.runtime.loader import load_engine
from m7b.runtime.model.batch import Span

_BLOCK = 1_048_573  # a prime, so no two rows are the same
_TOKEN = 1  # which one it is changes no speed


class EngineRunner:
    """Our engine, through the calls that answers are made with.

    Args:
        engine: nobody else may use it meanwhile.
        quant: as it was loaded.
    """

    name = "m7b"
    note = ""

    def __init__(self, engine: Engine, quant: str | None = None) -> None:
        self._engine, self._held = engine, [list[int]()]  # the ids that each sequence holds
        cache = engine.cache
        self.reads = Reads(
            weights=describe_weights(engine.model, quant),
            weight_bytes=count_weight_bytes(engine.model),
            kv_bytes=cache.n_bytes,
            kv_bytes_per_token=cache.bytes_per_token,
            window=cache.window,
        )

    def prepare(self, depth: int, n_sequences: int = 1) -> None:
        """Bring the cache to `depth` tokens, by going back to them or with random keys and values."""
        if n_sequences > 1:
            self._held = fill_sequences(self._engine, depth, n_sequences)
            return
        self._held, rows = [[_TOKEN] * depth], self._engine.rows
        if depth and self._engine.cache[rows.main].holds(depth):
            rows.rewind(rows.main, depth)
        else:
            rows.rewind(rows.main, 0)
            fill(self._engine.cache, rows.main, depth)
            self._engine.pretend(rows.main, self._held[0])

    def prefill(self, n: int) -> tuple[float, float]:
        """Read `n` tokens a sequence: seconds to the last logits, and to the tokens chosen by them."""
        if len(self._held) > 1:
            return prefill_together(self._engine, self._extend(n))
        started = time.perf_counter()
        read = chosen = 0.0
        for event in self._generate(n, 1):
            match event:
                case PromptProgress():
                    read = time.perf_counter() - started
                case Step():
                    chosen = time.perf_counter() - started
        return read, chosen

    def decode(self, n: int) -> tuple[float, ...]:
        """Read a token a sequence and choose the next by argmax, `n` times: the seconds of each time."""
        if len(self._held) > 1:
            return decode_together(self._engine, self._extend(1), n)
        return time_steps(event for event in self._generate(1, n) if isinstance(event, Step))

    def answer(self, text: KnownAnswer, *, drafts: bool) -> Answered:
        """Decode a known answer behind its prompt, with guesses looked up in the text so far or without."""
        engine = self._engine if drafts else self._engine.without_drafts()
        script = Script(text.answer, engine.model.config.vocab_size)
        params = SamplingParams(max_tokens=len(text.answer), temperature=0, constraint=script)
        events = engine.generate(text.prompt, params)
        steps = (event for event in events if isinstance(event, Step))
        first = next(steps)
        started = time.perf_counter()
        rest = list(steps)
        seconds = time.perf_counter() - started
        assert (first.token, *(step.token for step in rest)) == text.answer
        return Answered(seconds, sum(step.drafted for step in rest), sum(step.is_taken for step in rest))

    def _generate(self, n_prompt: int, n_tokens: int) -> Iterator[PromptProgress | Step]:
        (ids,) = self._extend(n_prompt)
        return self._engine.generate(ids, SamplingParams(max_tokens=n_tokens, temperature=0))

    def _extend(self, n: int) -> list[list[int]]:
        """Prompts of `n` tokens behind those that each sequence holds, no two of which begin alike."""
        vocab_size = self._engine.model.config.vocab_size
        return [held + [(_TOKEN + i) % vocab_size] * n for i, held in enumerate(self._held)]


class Script:
    """A grammar that allows one answer alone, and tells none of it beforehand: each token is asked for.

    Args:
        ids: the answer.
        vocab_size: V.
    """

    def __init__(self, ids: Sequence[int], vocab_size: int) -> None:
        self._ids, self._n_bytes = ids, (vocab_size + 7) // 8

    def start_matcher(self) -> "_ScriptMatcher":
        """The beginning of the answer."""
        return _ScriptMatcher(self._ids, self._n_bytes)


class _ScriptMatcher:
    def __init__(self, ids: Sequence[int], n_bytes: int) -> None:
        self._ids, self._n_bytes, self._at = ids, n_bytes, 0

    def find_forced(self) -> list[int]:
        return []

    def pack_mask(self) -> bytes:
        token = self._ids[self._at]
        return (1 << token).to_bytes(self._n_bytes, "little")

    def accept(self, token: int) -> None:
        self._at += 1


def load_runner(
    name: str,
    checkpoint: Checkpoint,
    options: EngineOptions,
    mix: Mix = (),
    *,
    is_static: bool | None = None,
) -> Generator[str, None, EngineRunner]:
    """Load our engine with the adapters of `mix`, to be timed; tells how far it is."""
    loading = load_engine(checkpoint, options, [mix] if mix else (), is_static=is_static)
    while True:
        try:
            progress = next(loading)
        except StopIteration as done:
            return EngineRunner(done.value, options.quant)
        yield f"loading {name}: {progress.done >> 20} of {progress.total >> 20} MiB"


def fill_sequences(engine: Engine, depth: int, n_sequences: int) -> list[list[int]]:
    """Bring a row for each of `n_sequences` to `depth` tokens; returns the ids that each then holds."""
    rows, vocab_size = engine.rows, engine.model.config.vocab_size
    held = [[(_TOKEN + i) % vocab_size] * depth for i in range(n_sequences)]
    ctx_size = rows[rows.main].n_tokens
    with ExitStack() as claims:  # all at once, or the same row would be found again
        for ids in held:
            row = claims.enter_context(rows.claim(ctx_size))
            fill(engine.cache, row, depth)
            engine.pretend(row, ids)
    return held


@torch.inference_mode()
def fill(cache: RollingKVCache, row: int, depth: int) -> None:
    """Leave an empty `row` as a prompt of `depth` tokens would, with random keys and values.

    Which values they are changes no speed, and computing 4096 positions of a 7B takes minutes.
    """
    block = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(0)).to(cache[row].keys[0].device)
    drawn = 0  # values taken from the block
    for at in range(0, depth, cache.prefill_chunk):
        span = Span(row, at, min(cache.prefill_chunk, depth - at))
        cache.reserve([span])
        shape = torch.Size((cache.config.n_kv_heads, span.n, cache.config.head_dim))  # (K, T, D)
        for layer in range(cache.config.n_layers):
            starts = (drawn, drawn + shape.numel())
            cache[row].write(layer, span, *(cut(block, shape.numel(), start).view(shape) for start in starts))
            drawn += 2 * shape.numel()
        cache.commit([span])


def peak_rss() -> int:
    """The most bytes of memory that this process has had, since `reset_peak_rss` where that works."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def reset_peak_rss() -> None:
    """Let `peak_rss` forget what was, as Linux can; elsewhere it counts from the start of the process."""
    with suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
