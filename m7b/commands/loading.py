"""From the options of a command to an open checkpoint, a tokenizer and a running engine."""

import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from m7b import hub
from m7b.commands.options import DType, VariantName, default_variant
from m7b.errors import UnsupportedCheckpoint, UsageError
from m7b.generation import Engine
from m7b.render import Status, note
from m7b.tokenizer import OfficialVocabulary, Tokenizer, load_tokenizer
from m7b.variants import VARIANTS

if TYPE_CHECKING:
    from m7b.runtime.checkpoints import Checkpoint
    from m7b.runtime.loader import LoadProgress


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """All that a command needs to generate text; `load_s` seconds were spent on it."""

    name: str
    engine: Engine
    tokenizer: Tokenizer
    stop_ids: frozenset[int]
    load_s: float


def chosen_variant(variant: VariantName | None, model: Path | None) -> str | None:
    """The name of the variant that the options choose, None where they name a checkpoint by path.

    Raises:
        UsageError: both are given.
    """
    if variant and model:
        raise UsageError("--variant and --model are both given", hint="name one checkpoint")
    if model:
        return None
    return variant.value if variant else default_variant()


def open_chosen(
    variant: VariantName | None, model: Path | None, *, window_given: bool
) -> "tuple[str, Checkpoint]":
    """The chosen checkpoint, not yet loaded, and what to call it."""
    from m7b.runtime.checkpoints import open_checkpoint

    name = chosen_variant(variant, model)
    path = hub.locate(name) if name else model
    assert path is not None
    return name or path.resolve().name, open_checkpoint(path, window_given=window_given)


def load_chosen_tokenizer(variant: VariantName | None, model: Path | None) -> Tokenizer:
    """The tokenizer alone. Those of the official variants need no checkpoint."""
    name = chosen_variant(variant, model)
    version = VARIANTS[name].tokenizer if name else None
    if version:
        return load_tokenizer(OfficialVocabulary(version))
    return tokenizer_of(open_chosen(variant, model, window_given=True)[1])


def tokenizer_of(checkpoint: "Checkpoint") -> Tokenizer:
    """The tokenizer that a checkpoint brings.

    Raises:
        UnsupportedCheckpoint: it brings none, or one with more ids than the model has.
    """
    if checkpoint.tokenizer is None:
        raise UnsupportedCheckpoint(
            f"{checkpoint.path}: holds no tokenizer",
            hint="put tokenizer.model or tokenizer.json beside the weights",
        )
    tokenizer = load_tokenizer(checkpoint.tokenizer)
    if tokenizer.vocab_size > checkpoint.config.vocab_size:
        raise UnsupportedCheckpoint(
            f"{checkpoint.path}: the tokenizer has {tokenizer.vocab_size} ids, "
            f"the model {checkpoint.config.vocab_size}"
        )
    return tokenizer


def load_model(
    variant: VariantName | None,
    model: Path | None,
    *,
    window: int | None,
    ctx_size: int | None,
    prefill_chunk: int,
    dtype: DType | None,
    device: str,
    threads: int | None,
) -> LoadedModel:
    """Load the chosen checkpoint, showing progress on a terminal."""
    started = time.perf_counter()
    status = Status()
    status.show("loading…")
    try:
        from m7b.runtime.loader import EngineOptions, load_engine

        name, checkpoint = open_chosen(variant, model, window_given=window is not None)
        if checkpoint.note:
            status.clear()
            note(checkpoint.note)
        tokenizer = tokenizer_of(checkpoint)
        options = EngineOptions(device, dtype, window, ctx_size, prefill_chunk, threads)
        engine = _drained(load_engine(checkpoint, options), name, status)
    finally:
        status.clear()
    return LoadedModel(name, engine, tokenizer, checkpoint.stop_ids, time.perf_counter() - started)


def _drained(loading: "Generator[LoadProgress, None, Engine]", name: str, status: Status) -> Engine:
    """The engine at the end of `loading`, whose progress shows meanwhile."""
    while True:
        try:
            progress = next(loading)
        except StopIteration as done:
            engine: Engine = done.value
            return engine
        status.show(f"loading {name}: {progress.done >> 20} of {progress.total >> 20} MiB")
