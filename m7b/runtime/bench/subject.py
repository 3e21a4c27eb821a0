"""The model that is measured and how it runs."""

from dataclasses import dataclass
from typing import Any

from m7b.generation import EngineOptions
from m7b.runtime.adapters import Mix
from m7b.runtime.bench.peers import Task
from m7b.runtime.checkpoints import Checkpoint
from m7b.runtime.loader import run_dtype
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


def make_task(subject: Subject, ctx_size: int, n_sequences: int = 1) -> Task:
    """The same model for a peer, with room for `ctx_size` tokens of each sequence."""
    options, checkpoint = subject.options, subject.checkpoint
    dtype = run_dtype(checkpoint.dtype, options.dtype)
    shape = (checkpoint, subject.config, dtype, options.quant, ctx_size, subject.is_random, n_sequences)
    return Task(*shape, options.device)
