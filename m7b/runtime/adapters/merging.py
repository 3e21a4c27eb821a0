"""A checkpoint with adapters merged into its weights, in float32, as they are read."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from m7b.runtime.adapters.adapter import Mix
from m7b.runtime.checkpoints import Checkpoint, StoredTensor


def merge(checkpoint: Checkpoint, mix: Mix) -> Checkpoint:
    """`checkpoint` with what `mix` adds; weights to which that is something are float32.

    Raises:
        DamagedCheckpoint: when a weight is read, of whose adapter a value is not finite.
    """
    adapted = {name for one in mix for name in one.adapter.parts}

    def read(name: str) -> Tensor:
        weight = checkpoint.read(name)
        if name not in adapted:
            return weight
        weight = weight.to(torch.float32, copy=True)
        for one in mix:
            if name in one.adapter.parts:
                weight += one.scale * one.adapter.compute_difference(name)
        return weight

    tensors = {
        name: _widen(tensor) if name in adapted else tensor for name, tensor in checkpoint.tensors.items()
    }
    return replace(checkpoint, tensors=tensors, read=read)


def _widen(tensor: StoredTensor) -> StoredTensor:
    return replace(tensor, dtype="F32", n_bytes=4 * math.prod(tensor.shape))
