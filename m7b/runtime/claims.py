"""The architecture's claims, measured: a model with an idea of it and without. Weights are random."""

import gc
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch

from m7b.bench.claims import Claim
from m7b.bench.results import Sample, Work, speeds
from m7b.errors import OutOfResources, UsageError
from m7b.generation import EngineOptions
from m7b.runtime.checkpoints.random import random_checkpoint
from m7b.runtime.engine import Engine
from m7b.runtime.loader import load_engine
from m7b.runtime.machine import free_memory
from m7b.runtime.measure import EngineRunner, repeat
from m7b.runtime.model.config import ModelConfig

MISTRAL_WINDOW = 4096
"""The window that a model without one is given, to see what it would save."""

MOST_LAYERS = 4
"""As many as are measured: each costs the same, and the MHA cache of 32 at 32K takes 16 GiB."""

_ITEM_BYTES = 2  # of keys and values: bfloat16


@dataclass(frozen=True, slots=True)
class Shapes:
    """A configuration with an idea and one without it, alike in all else."""

    claim: str
    with_it: ModelConfig
    without: ModelConfig


def shapes_of(config: ModelConfig, window: int | None = None) -> tuple[Shapes, ...]:
    """Both ideas of the architecture. That of heads is measured with full attention on either side.

    Raises:
        UsageError: the window is no less than the context, so it saves nothing.
    """
    full, context = replace(config, sliding_window=None), config.max_seq_len
    size = window or config.sliding_window or MISTRAL_WINDOW
    if size >= context:
        raise UsageError(
            f"a window of {size} saves nothing in a context of {context}", hint="give a smaller --window"
        )
    return (
        Shapes(
            f"GQA, {config.n_heads} heads share {config.n_kv_heads}",
            full,
            replace(full, n_kv_heads=config.n_heads),
        ),
        Shapes(f"a window of {size}", replace(config, sliding_window=size), full),
    )


def fitting_layers(shapes: Sequence[Shapes], work: Work, dtype: torch.dtype, prefill_chunk: int) -> int:
    """How many layers of both models of every claim fit into free memory together, `MOST_LAYERS` at most.

    Raises:
        OutOfResources: not one does.
    """
    free = free_memory()
    most = min(MOST_LAYERS, shapes[0].with_it.n_layers)
    for n_layers in range(most, 0, -1):
        needed = max(
            sum(
                _memory(config, n_layers, work, dtype, prefill_chunk) for config in (one.with_it, one.without)
            )
            for one in shapes
        )
        if needed <= free:
            return n_layers
    raise OutOfResources(
        f"one layer with and without needs {needed >> 20:,} MiB of memory and {free >> 20:,} MiB are free",
        hint="close other programs, or name a smaller model",
    )


def measure_claims(
    shapes: Sequence[Shapes], n_layers: int, work: Work, repetitions: int, options: EngineOptions
) -> Generator[str, None, tuple[Claim, ...]]:
    """Decode in the first `n_layers`, with each idea and without in turn; what goes on, then the claims.

    One repetition of each comes before those that count.
    """
    options = replace(options, window=None, ctx_size=work.depth + work.decode_tokens + 1)
    claims = []
    for one in shapes:
        tps = yield from _decoded(one, n_layers, work, repetitions, options)
        gc.collect()  # models that accelerate has spread out refer to themselves
        claims.append(_claim(one, options.prefill_chunk, *tps))
    return tuple(claims)


def _decoded(
    one: Shapes, n_layers: int, work: Work, repetitions: int, options: EngineOptions
) -> Generator[str, None, tuple[float, float]]:
    """Median tokens per second with the idea and without; both models are gone when it returns."""
    yield f"{one.claim}: loading"
    configs = (replace(config, n_layers=n_layers) for config in (one.with_it, one.without))
    runners = [EngineRunner(_load(config, options), options.quant) for config in configs]
    samples: list[list[Sample]] = [[], []]
    for turn in range(repetitions + 1):
        yield f"{one.claim}: " + (f"repetition {turn} of {repetitions}" if turn else "warming up")
        for runner, found in zip(runners, samples, strict=True):
            sample = repeat(runner, work)
            if turn:
                found.append(sample)
    with_it, without = (median(speeds(work, found)[1]) for found in samples)
    return with_it, without


def _claim(one: Shapes, prefill_chunk: int, tps: float, tps_without: float) -> Claim:
    """The claim with its bytes, which are those of the whole model at its longest context."""
    seen, seen_without = (_kv_bytes(config) for config in (one.with_it, one.without))
    allocated, allocated_without = (
        config.cache_slots(config.max_seq_len, prefill_chunk) * config.cache_bytes_per_token(_ITEM_BYTES)
        for config in (one.with_it, one.without)
    )
    return Claim(
        claim=one.claim,
        context=one.with_it.max_seq_len,
        kv_bytes=seen,
        kv_bytes_without=seen_without,
        kv_ratio=seen_without / seen,
        allocated_ratio=allocated_without / allocated,
        decode_tps=tps,
        decode_tps_without=tps_without,
        decode_ratio=tps / tps_without,
    )


def _kv_bytes(config: ModelConfig) -> int:
    """Bytes of keys and values that the last token of the longest context sees."""
    return min(
        config.max_seq_len, config.sliding_window or config.max_seq_len
    ) * config.cache_bytes_per_token(_ITEM_BYTES)


def _memory(config: ModelConfig, n_layers: int, work: Work, dtype: torch.dtype, prefill_chunk: int) -> int:
    """Bytes of the weights and the cache of the first layers."""
    part = replace(config, n_layers=n_layers)
    n_slots = part.cache_slots(work.depth + work.decode_tokens + 1, prefill_chunk)
    return part.n_params * dtype.itemsize + n_slots * part.cache_bytes_per_token(dtype.itemsize)


def _load(config: ModelConfig, options: EngineOptions) -> Engine:
    loading = load_engine(random_checkpoint("random weights", config), options)
    while True:
        try:
            next(loading)
        except StopIteration as done:
            return done.value
