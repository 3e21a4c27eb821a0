"""Weights in GGUF's blocks, multiplied by the native kernels or, without them, by torch."""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from m7b.runtime import kernels
from m7b.runtime.checkpoints import Blocks
from m7b.runtime.kernels import BlockType, PackedWeight
from m7b.runtime.linears.packed import PackedLayer, PackedLinear
from m7b.runtime.model.operations import LinearFactory

_TILE_ROWS = 1024  # rows that torch turns back into numbers at a time


def parse_block_type(name: str) -> BlockType | None:
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

    def set_weight(self, weight: Tensor | Blocks) -> None:
        """Round or keep the weight, and pack it."""
        blocks = in_blocks(weight, self._wanted)
        self.set_packed(kernels.pack(self._wanted or BlockType[blocks.type], blocks.data))

    def set_packed(self, packed: PackedWeight) -> None:
        """Hold a weight that another layer may hold too."""
        self.block_type, self.packed = packed.type, packed

    @property
    def n_bytes(self) -> int:
        """Bytes of quants and scales, rows that fill the last panel included."""
        return self.packed.panels.nbytes

    def forward(self, x: Tensor) -> Tensor:
        """(T, in) to (T, out)."""
        return kernels.linear(x, self.packed)


class BlockEmbedding(PackedLayer):
    """Rows of a weight that stays in the blocks in which it is stored; a tied output multiplies by the same.

    Args:
        vocab_size: rows.
        dim: values of a row.
        dtype: of the values that are looked up.
    """

    takes_blocks = True

    def __init__(self, vocab_size: int, dim: int, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def set_weight(self, weight: Tensor | Blocks) -> None:
        """Pack the blocks."""
        assert isinstance(weight, Blocks)
        self.packed = kernels.pack(BlockType[weight.type], weight.data)

    @property
    def n_bytes(self) -> int:
        """Bytes of quants and scales, rows that fill the last panel included."""
        return self.packed.panels.nbytes

    def forward(self, tokens: Tensor) -> Tensor:
        """(N,) ids to (N, dim)."""
        return kernels.look_up(self.packed, tokens, self._dtype)


class StockBlockLinear(BlockLinear):
    """The same weights where there are no kernels: turned back into numbers, tile by tile, at every pass."""

    def set_weight(self, weight: Tensor | Blocks) -> None:
        """Round or keep the weight."""
        self._blocks = in_blocks(weight, self._wanted)

    @property
    def n_bytes(self) -> int:
        """Bytes of the blocks."""
        return self._blocks.data.nbytes

    def forward(self, x: Tensor) -> Tensor:
        """(T, in) to (T, out)."""
        tiles = (Blocks(self._blocks.type, rows) for rows in torch.split(self._blocks.data, _TILE_ROWS))
        return torch.cat([F.linear(x, tile.dequantize(x.dtype)) for tile in tiles], dim=-1)


def in_blocks(weight: Tensor | Blocks, type: BlockType | None) -> Blocks:
    """`weight` in blocks of `type`; None keeps what is stored."""
    if isinstance(weight, Blocks):
        if type is None or weight.type == type.stored:
            return weight
        weight = weight.dequantize(torch.float32)
    type = BlockType.Q8_0 if type is None else type
    assert weight.shape[1] % type.n_values == 0, "rows of every model here are whole blocks"
    if kernels.instruction_set():
        if weight.dtype == torch.float16:
            weight = weight.to(torch.float32)
        return Blocks(type.stored, kernels.quantize(type, weight))
    from gguf import GGMLQuantizationType, quants

    rows = quants.quantize(weight.to(torch.float32).numpy(), GGMLQuantizationType[type.stored])
    return Blocks(type.stored, torch.from_numpy(np.ascontiguousarray(rows)))
