"""A model that was looked at and is not yet loaded: its name, its checkpoint and its configuration."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from m7b.models.choice import ModelChoice
from m7b.variants import VARIANTS

if TYPE_CHECKING:
    from m7b.runtime.checkpoints import Checkpoint
    from m7b.runtime.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model on disk. `config` is the one that runs: it has the window that the user wants."""

    name: str
    checkpoint: "Checkpoint"
    config: "ModelConfig"


def open_model(
    choice: ModelChoice, *, window: int | None = None, has_random_weights: bool = False
) -> ModelFiles:
    """Look at the chosen model; this reads no weights.

    Args:
        choice: which model.
        window: the sliding window to run with, 0 for none; None is the checkpoint's own.
        has_random_weights: put random weights in the place of its own; a variant needs no files then.

    Raises:
        CheckpointNotFound: it is not on this machine.
        UnsupportedCheckpoint: it is no model that m7b runs.
        DamagedCheckpoint: its files are cut short or contradict each other.
    """
    from m7b.runtime.checkpoints import open_checkpoint
    from m7b.runtime.checkpoints.random import random_checkpoint
    from m7b.runtime.model.config import ModelConfig

    if has_random_weights and choice.release:
        name = choice.release
        checkpoint = random_checkpoint(name, ModelConfig.of_variant(VARIANTS[name]))
    else:
        name, path = choice.locate()
        checkpoint = open_checkpoint(path, window_given=window is not None)
        if has_random_weights:
            checkpoint = random_checkpoint(name, checkpoint.config)
    config = checkpoint.config
    if window is not None:
        config = replace(config, sliding_window=window or None)
    return ModelFiles(name, checkpoint, config)
