"""The model that `m7b bench` measures: which one, how it runs, what a report tells of it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m7b.commands.loading import chosen_variant, open_chosen
from m7b.commands.options import DType, VariantName
from m7b.render import note
from m7b.variants import VARIANTS

if TYPE_CHECKING:
    from m7b.runtime.checkpoints import Checkpoint
    from m7b.runtime.config import ModelConfig
    from m7b.runtime.loader import EngineOptions


@dataclass(frozen=True, slots=True)
class Choice:
    """Which model is measured and how it runs, in the words of the options."""

    variant: VariantName | None
    model: Path | None
    random_weights: bool
    quant: str | None
    dtype: DType | None
    threads: int | None
    window: int | None


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that was looked at: `config` is the one that runs, the window of the options in it."""

    name: str
    checkpoint: "Checkpoint"
    config: "ModelConfig"


def open_model(choice: Choice) -> Opened:
    """The chosen model, not yet loaded; with random weights a variant needs no files."""
    from m7b.runtime.checkpoints.random import random_checkpoint
    from m7b.runtime.config import ModelConfig

    name = chosen_variant(choice.variant, choice.model)
    if choice.random_weights and name:
        checkpoint = random_checkpoint(name, ModelConfig.of_variant(VARIANTS[name]))
    else:
        name, checkpoint = open_chosen(choice.variant, choice.model, window_given=choice.window is not None)
        if choice.random_weights:
            checkpoint = random_checkpoint(name, checkpoint.config)
        elif checkpoint.note:
            note(checkpoint.note)
    config = checkpoint.config
    if choice.window is not None:
        config = replace(config, sliding_window=choice.window or None)
    return Opened(name, checkpoint, config)


def engine_options(choice: Choice, ctx_size: int) -> "EngineOptions":
    """How our engine is to run the choice."""
    from m7b.runtime.loader import EngineOptions

    return EngineOptions(
        dtype=choice.dtype,
        window=choice.window,
        ctx_size=ctx_size or None,
        threads=choice.threads,
        quant=choice.quant,
    )


def about(opened: Opened, choice: Choice, weights: str) -> dict[str, Any]:
    """What a report tells of the model."""
    config = opened.config
    return {
        "name": opened.name,
        "random_weights": choice.random_weights,
        "parameters": config.n_params,
        "n_layers": config.n_layers,
        "weights": str(weights),
        "quant": choice.quant and str(choice.quant),
        "window": config.sliding_window,
    }
