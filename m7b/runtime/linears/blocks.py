"""Weights in GGUF's blocks of 32, multiplied by the native kernels or, without them, by torch."""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from m7b.runtime import kernels
from m7b.runtime.checkpoints import Blocks
from m7b.runtime.kernels import BLOCK, BlockType
from m7b.runtime.linears.packed import PackedLinear
from m7b.runtime.model import LinearFactory

_TILE_ROWS = 1024  # rows that torch turns back into numbers at a time


def type_named(name: str) -> BlockType | None:
    """The block format with GGUF's `name`, None where the kernels do not know it."""
    return BlockType.__members__.get(name)


class BlockLinear(PackedLinear):
    """Weights in panels of 16 rows, activations rounded under a scale for 32: `kernels.linear`.

    With a `type`, every weight is rounded to it. Without one, blocks stay as they are stored and
    other weights become Q8_0.
    """

    takes_blocks = True

    def __init__(self, in_features: int, out_features: int, type: BlockType | None) -> None:
        super().__init__(in_features, out_features)
        self._wanted = type

    @classmethod
    def factory(cls, type: BlockType | None) -> LinearFactory:
        """Layers of one block type."""
        return partial(cls, type=type)

    def take(self, weight: Tensor | Blocks) -> None:
        """Round or keep the weight, and pack it."""
        blocks = in_blocks(weight, self._wanted)
        self.block_type = self._wanted or BlockType[blocks.type]
        self.packed = kernels.pack(self.block_type, blocks.data)

    @property
    def n_bytes(self) -> int:
        """Bytes of quants and scales, rows that fill the last panel included."""
        return self.packed.panels.nbytes

    def forward(self, x: Tensor) -> Tensor:
        """(T, in) to (T, out)."""
        return kernels.linear(x, self.packed)


class StockBlockLinear(BlockLinear):
    """The same weights where there are no kernels: turned back into numbers, tile by tile, at every pass."""

    def take(self, weight: Tensor | Blocks) -> None:
        """Round or keep the weight."""
        blocks = in_blocks(weight, self._wanted)
        self.block_type = self._wanted or BlockType[blocks.type]
        self._blocks = blocks.data

    @property
    def n_bytes(self) -> int:
        """Bytes of the blocks."""
        return self._blocks.nbytes

    def forward(self, x: Tensor) -> Tensor:
        """(T, in) to (T, out)."""
        tiles = torch.split(self._blocks, _TILE_ROWS)
        return torch.cat([F.linear(x, dequantized(self.block_type, tile, x.dtype)) for tile in tiles], dim=-1)


def in_blocks(weight: Tensor | Blocks, type: BlockType | None) -> Blocks:
    """`weight` in blocks of `type`; None keeps what is stored."""
    if isinstance(weight, Blocks):
        if type is None or weight.type == type.stored:
            return weight
        weight = dequantized(BlockType[weight.type], weight.data, torch.float32)
    type = BlockType.Q8_0 if type is None else type
    assert weight.shape[1] % BLOCK == 0, "rows of every model here are whole blocks"
    if kernels.instruction_set():
        if weight.dtype == torch.float16:
            weight = weight.to(torch.float32)
        return Blocks(type.stored, kernels.quantize(type, weight))
    from gguf import GGMLQuantizationType, quants

    rows = quants.quantize(weight.to(torch.float32).numpy(), GGMLQuantizationType[type.stored])
    return Blocks(type.stored, torch.from_numpy(np.ascontiguousarray(rows)))


def dequantized(type: BlockType, blocks: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers (out, in) that `blocks` (out, bytes) stand for. (Layout: ggml-common.h.)"""
    rows = blocks.view(blocks.shape[0], -1, type.n_bytes)  # (out, n_blocks, bytes)
    scale = rows[:, :, :2].contiguous().view(torch.float16).to(torch.float32)
    if type.stored == "Q8_0":
        values = rows[:, :, 2:].contiguous().view(torch.int8) * scale
    else:
        nibbles = rows[:, :, -16:]
        values = torch.cat((nibbles & 15, nibbles >> 4), dim=-1) * scale
        if type is BlockType.Q4_0:
            values -= 8 * scale
        else:
            values += rows[:, :, 2:4].contiguous().view(torch.float16).to(torch.float32)
    return values.to(dtype).flatten(1)
