"""The architecture's claims, measured: a model with an idea of it and without. Weights are random."""

import gc
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch

from m7b.bench.claims import Claim, ClaimsReport
from m7b.bench.figures import compute_speeds
from m7b.bench.runs import Sample, Work, repeat
from m7b.errors import ContextOverflow, OutOfResources, UsageError
from m7b.generation import EngineOptions
from m7b.runtime.bench.measure import load_runner
from m7b.runtime.bench.reach import measure_reach
from m7b.runtime.bench.subject import Subject
from m7b.runtime.checkpoints.random import random_checkpoint
from m7b.runtime.loader import DTYPES
from m7b.runtime.machine import as_json, describe_machine, free_memory
from m7b.runtime.model.config import ModelConfig

MISTRAL_WINDOW = 4096
"""The window that a model without one is given, to see what it would save."""

MOST_LAYERS = 4
"""As many as are measured: each costs the same, and the MHA cache of 32 at 32K takes 16 GiB."""

_ITEM_BYTES = 2  # of keys and values: bfloat16


@dataclass(frozen=True, slots=True)
class ShapePair:
    """A configuration with an idea and one without it, alike in all else."""

    claim: str
    with_it: ModelConfig
    without: ModelConfig


def measure_claims(
    subject: Subject, decode_tokens: int, repetitions: int
) -> Generator[str, None, ClaimsReport]:
    """Decode `decode_tokens` at the end of the context, with each idea and without in turn.

    Weights are random, in as many layers as fit into memory twice. One repetition of each comes before those
    that count. Tells what goes on. The window of the options is the one whose claim is measured.

    Raises:
        ContextOverflow: not so many tokens fit the context.
        OutOfResources: not one layer fits into memory.
        UsageError: the window is no less than the context.
    """
    options, context = subject.options, subject.config.max_seq_len
    pairs = pair_shapes(subject.config, options.window)
    work = Work(0, decode_tokens, context - decode_tokens - 1)
    if work.depth < 0:
        raise ContextOverflow(
            f"-n {decode_tokens} does not fit a context of {context}", hint="decode fewer tokens"
        )
    dtype = DTYPES[options.dtype or "bfloat16"]
    n_layers = count_fitting_layers(pairs, work, dtype, options.prefill_chunk)
    options = replace(options, window=None, ctx_size=work.depth + work.decode_tokens + 1)
    claims = []
    for pair in pairs:
        tps = yield from _decode_in_turn(pair, n_layers, work, repetitions, options)
        gc.collect()  # models that accelerate has spread out refer to themselves
        claims.append(_make_claim(pair, options.prefill_chunk, *tps))
    return ClaimsReport(
        machine=as_json(describe_machine()),
        model=subject.about | {"weights": str(options.quant or options.dtype or "bfloat16")},
        measured_layers=n_layers,
        depth=work.depth,
        claims=tuple(claims),
        reach=(yield from measure_reach()),
    )


def pair_shapes(config: ModelConfig, window: int | None = None) -> tuple[ShapePair, ...]:
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
        ShapePair(
            f"GQA, {config.n_heads} heads share {config.n_kv_heads}",
            full,
            replace(full, n_kv_heads=config.n_heads),
        ),
        ShapePair(f"a window of {size}", replace(config, sliding_window=size), full),
    )


def count_fitting_layers(
    pairs: Sequence[ShapePair], work: Work, dtype: torch.dtype, prefill_chunk: int
) -> int:
    """How many layers of both models of every claim fit into free memory together, `MOST_LAYERS` at most.

    Raises:
        OutOfResources: not one does.
    """
    free = free_memory()
    most = min(MOST_LAYERS, pairs[0].with_it.n_layers)
    for n_layers in range(most, 0, -1):
        needed = max(
            _memory(pair.with_it, n_layers, work, dtype, prefill_chunk)
            + _memory(pair.without, n_layers, work, dtype, prefill_chunk)
            for pair in pairs
        )
        if needed <= free:
            return n_layers
    raise OutOfResources(
        f"one layer with and without needs {needed >> 20:,} MiB of memory and {free >> 20:,} MiB are free",
        hint="close other programs, or name a smaller model",
    )


def _decode_in_turn(
    pair: ShapePair, n_layers: int, work: Work, repetitions: int, options: EngineOptions
) -> Generator[str, None, tuple[float, float]]:
    """Median tokens per second with the idea and without; both models are gone when it returns."""
    runners = []
    for config in (pair.with_it, pair.without):
        checkpoint = random_checkpoint(pair.claim, replace(config, n_layers=n_layers))
        runners.append((yield from load_runner(pair.claim, checkpoint, options)))
    samples: list[list[Sample]] = [[], []]
    for turn in range(repetitions + 1):
        yield f"{pair.claim}: " + (f"repetition {turn} of {repetitions}" if turn else "warming up")
        for runner, found in zip(runners, samples, strict=True):
            sample = repeat(runner, work)
            if turn:
                found.append(sample)
    with_it, without = (median(compute_speeds(work, found)[1]) for found in samples)
    return with_it, without


def _make_claim(pair: ShapePair, prefill_chunk: int, tps: float, tps_without: float) -> Claim:
    """The claim with its bytes, which are those of the whole model at its longest context."""
    seen, seen_without = (_kv_bytes(config) for config in (pair.with_it, pair.without))
    allocated, allocated_without = (
        config.cache_slots(config.max_seq_len, prefill_chunk) * config.cache_bytes_per_token(_ITEM_BYTES)
        for config in (pair.with_it, pair.without)
    )
    return Claim(
        claim=pair.claim,
        context=pair.with_it.max_seq_len,
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
