"""Blocks of every type, drawn at random: every pattern of bits is a block, but for the float16s in it."""

import torch
from torch import Tensor

from m7b.runtime.kernels import BlockType

# Where the float16s of a block are: its scale, and its minimum. (ggml-common.h)
_HEADS = {
    BlockType.Q4_0: (0,),
    BlockType.Q4_1: (0, 2),
    BlockType.Q8_0: (0,),
    BlockType.INT8: (0,),
    BlockType.Q5_0: (0,),
    BlockType.Q5_1: (0, 2),
    BlockType.Q2_K: (80, 82),
    BlockType.Q3_K: (108,),
    BlockType.Q4_K: (0, 2),
    BlockType.Q5_K: (0, 2),
    BlockType.Q6_K: (208,),
    BlockType.IQ4_NL: (0,),
    BlockType.IQ4_XS: (0,),
}


def draw_blocks(type: BlockType, n_out: int, n_in: int, heads: Tensor | float | None = None) -> Tensor:
    """Blocks (out, bytes) uint8 of drawn bits, with the float16s `heads`, else drawn ones of either sign."""
    n_blocks = n_in // type.n_values
    blocks = torch.randint(0, 256, (n_out, n_blocks, type.n_bytes), dtype=torch.uint8)
    set_heads(type, blocks, torch.randn(n_out, n_blocks, 1) / 100 if heads is None else heads)
    return blocks.flatten(1)


def set_heads(type: BlockType, blocks: Tensor, heads: Tensor | float) -> None:
    """Let the float16s of `blocks` (out, n_blocks, bytes) uint8 be `heads`."""
    for at in _HEADS[type]:
        values = torch.as_tensor(heads).expand(*blocks.shape[:2], 1).half().contiguous()
        blocks[:, :, at : at + 2] = values.view(torch.uint8)
