"""How fast an engine reads and decodes at a depth, and what it takes. Knows engines; prints nothing."""

import resource
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import cast

import torch

from m7b.bench.runs import Reads, time_steps
from m7b.errors import UsageError
from m7b.generation import PromptProgress, SamplingParams, Step
from m7b.runtime.bench.together import BatchingEngine, decode_together, prefill_together
from m7b.runtime.bench.weights import count_weight_bytes, describe_weights
from m7b.runtime.cache import RollingKVCache
from m7b.runtime.checkpoints import Checkpoint
from m7b.runtime.checkpoints.random import cut
from m7b.runtime.config import ModelConfig
from m7b.runtime.engine import Engine
from m7b.runtime.loader import EngineOptions, load_engine

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
            weights=describe_weights(engine._model, quant),
            weight_bytes=count_weight_bytes(engine._model),
            kv_bytes=cache.n_bytes,
            kv_bytes_per_token=cache.n_bytes // cache.capacity,
            window=cache.window,
        )

    def prepare(self, depth: int, n_sequences: int = 1) -> None:
        """Bring the cache to `depth` tokens, by going back to them or with random keys and values."""
        if n_sequences > 1:
            self._held = fill_sequences(self._engine, depth, n_sequences)
            return
        self._held, cache = [[_TOKEN] * depth], self._engine.cache
        if depth and cache.can_rewind(depth):
            cache.rewind(depth)
        else:
            fill(cache, self._engine._model.config, depth)
        self._engine.pretend(self._held[0])

    def prefill(self, n: int) -> tuple[float, float]:
        """Read `n` tokens a sequence: seconds to the last logits, and to the tokens chosen by them."""
        if len(self._held) > 1:
            return prefill_together(self._batching, self._extend(n))
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
            return decode_together(self._batching, self._extend(1), n)
        return time_steps(event for event in self._generate(1, n) if isinstance(event, Step))

    def _generate(self, n_prompt: int, n_tokens: int) -> Iterator[PromptProgress | Step]:
        (ids,) = self._extend(n_prompt)
        return self._engine.generate(ids, SamplingParams(max_tokens=n_tokens, temperature=0))

    def _extend(self, n: int) -> list[list[int]]:
        """Prompts of `n` tokens behind those that each sequence holds, no two of which begin alike."""
        vocab_size = self._engine.model.config.vocab_size
        return [held + [(_TOKEN + i) % vocab_size] * n for i, held in enumerate(self._held)]

    @property
    def _batching(self) -> BatchingEngine:
        return cast(BatchingEngine, self._engine)


def load_runner(
    name: str, checkpoint: Checkpoint, options: EngineOptions
) -> Generator[str, None, EngineRunner]:
    """Load our engine, to be timed; tells how far it is."""
    loading = load_engine(checkpoint, options)
    while True:
        try:
            progress = next(loading)
        except StopIteration as done:
            return EngineRunner(done.value, options.quant)
        yield f"loading {name}: {progress.done >> 20} of {progress.total >> 20} MiB"


def fill_sequences(engine: Engine, depth: int, n_sequences: int) -> list[list[int]]:
    """Bring the caches of `n_sequences` to `depth` tokens each; returns the ids that they then hold.

    Raises:
        UsageError: `depth` is not 0, which is all that can be done yet.
    """
    if depth:
        raise UsageError(f"--batch {n_sequences} starts with empty caches", hint="give -d 0")
    engine.forget()  # a prompt that an earlier repetition has read would not be read again
    return [[] for _ in range(n_sequences)]


@torch.inference_mode()
def fill(cache: RollingKVCache, config: ModelConfig, depth: int) -> None:
    """Leave `cache` as a prompt of `depth` tokens would, its keys and values random instead of computed.

    Which values they are changes no speed, and computing 4096 positions of a 7B takes minutes.
    """
    cache.rewind(0)
    block = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(0))
    drawn = 0  # values taken from the block
    for at in range(0, depth, cache.prefill_chunk):
        span, _, _ = cache.reserve(min(cache.prefill_chunk, depth - at))
        shape = torch.Size((config.n_kv_heads, span.length, config.head_dim))  # (K, T, D)
        for layer in cache.layers:
            starts = (drawn, drawn + shape.numel())
            layer.write(span, *(cut(block, shape.numel(), start).view(shape) for start in starts))
            drawn += 2 * shape.numel()
        cache.commit(span)


def peak_rss() -> int:
    """The most bytes of memory that this process has had, since `reset_peak_rss` where that works."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def reset_peak_rss() -> None:
    """Let `peak_rss` forget what was, as Linux can; elsewhere it counts from the start of the process."""
    with suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
