"""A checkpoint that nobody trained: a model's true shape with random weights, for speed and memory alone."""

import zlib
from pathlib import Path

import torch

from m7b.runtime.checkpoints.checkpoint import Checkpoint, Format, StoredTensor
from m7b.runtime.model.config import ModelConfig

STD = 0.02
"""Of the weights, as models start their training; norms are 1."""

_BLOCK = 8_388_593  # a prime, so no two rows of a matrix are the same


def random_checkpoint(name: str, config: ModelConfig, seed: int = 0) -> Checkpoint:
    """A checkpoint in bfloat16 with the shape of `config`, in no file and without a tokenizer.

    16 MiB of normals are drawn once and every tensor is cut from them, each from another place: drawing
    them all would take minutes for 7B. Its answers mean nothing; its speed is that of trained weights.
    """
    draw = torch.Generator().manual_seed(seed)
    block = (torch.randn(_BLOCK, generator=draw) * STD).to(torch.bfloat16)
    shapes, path = config.tensor_shapes(), Path(name)

    def read(tensor: str) -> torch.Tensor:
        shape = shapes[tensor]
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16)
        return cut(block, torch.Size(shape).numel(), zlib.crc32(tensor.encode())).view(shape)

    return Checkpoint(
        path=path,
        format=Format.HF,
        config=config,
        dtype=torch.bfloat16,
        tensors={
            tensor: StoredTensor(tensor, path, shape, "BF16", 2 * torch.Size(shape).numel())
            for tensor, shape in shapes.items()
        },
        read=read,
        tokenizer=None,
        stop_ids=frozenset(),
        chat_templates={},
    )


def cut(block: torch.Tensor, n: int, start: int) -> torch.Tensor:
    """`n` values from `block` (N,) repeated without end, from `start` on.

    [a, b, c], 5 values from 4: [b, c, a, b, c].
    """
    values, done, at = torch.empty(n, dtype=block.dtype, device=block.device), 0, start % len(block)
    while done < n:
        piece = block[at : at + n - done]
        values[done : done + len(piece)] = piece
        done, at = done + len(piece), 0
    return values
