"""What a peer is asked to run: the model that we run, in the same weights."""

from dataclasses import dataclass

import torch

from m7b.runtime.checkpoints import Checkpoint
from m7b.runtime.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Task:
    """One model to load.

    `config` is the checkpoint's with the window that the user chose, and `quant` the format that they
    chose for weights, None for that of the checkpoint. `ctx_size` tokens of each of `n_sequences` must fit.
    `is_random` says that the values of the weights do not matter.
    """

    checkpoint: Checkpoint
    config: ModelConfig
    dtype: torch.dtype
    quant: str | None
    ctx_size: int
    is_random: bool
    n_sequences: int = 1
    device: str = "cpu"

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values of one position, kept in `dtype` or another of its size."""
        return self.config.cache_bytes_per_token(self.dtype.itemsize)
