"""The model that is measured and how it runs."""

from dataclasses import dataclass
from typing import Any

from m7b.generation import EngineOptions
from m7b.runtime.adapters import Mix
from m7b.runtime.checkpoints import Checkpoint
from m7b.runtime.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Subject:
    """A checkpoint that is not yet loaded.

    `config` is the checkpoint's with the window that runs, `is_random` says that the values of the weights do
    not matter, and `about` is what a report tells of the model. `mix` has the adapters that are added.
    """

    name: str
    checkpoint: Checkpoint
    config: ModelConfig
    options: EngineOptions
    is_random: bool
    about: dict[str, Any]
    mix: Mix = ()
