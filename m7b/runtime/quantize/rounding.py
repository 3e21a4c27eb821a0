"""Weights to blocks with scales that are searched for, instead of those that span the values."""

import torch
from torch import Tensor

from m7b.runtime import kernels
from m7b.runtime.kernels import BLOCK, BlockType
from m7b.runtime.linears.blocks import in_blocks

_ROWS = 256


def best_blocks(type: BlockType, weight: Tensor, importance: Tensor | None = None) -> Tensor:
    """Blocks (out, bytes) uint8 of `weight` (out, in).

    They get the scales that leave the least squared error, that of each column times its `importance`
    (in,). Q8_0 is so fine that searching changes nothing that can be measured.
    """
    if type is BlockType.Q8_0:
        return in_blocks(weight, type).data
    importance = _spread(torch.ones(weight.shape[1]) if importance is None else importance.to(torch.float32))
    if kernels.instruction_set():
        wide = weight if weight.dtype != torch.float16 else weight.to(torch.float32)
        return kernels.quantize(type, wide, importance)
    assert type is BlockType.Q4_0, "others are refused where there are no kernels"
    return torch.cat([_search(rows, importance) for rows in torch.split(weight.to(torch.float32), _ROWS)])


def _spread(importance: Tensor) -> Tensor:
    """Around 1, and none of them 0: a column that was silent in one text need not be in another."""
    mean = importance.mean()
    return (importance / mean if mean > 0 else torch.ones_like(importance)) + 1e-3


def _search(weight: Tensor, importance: Tensor) -> Tensor:
    """Blocks of Q4_0 in torch: a few starts of the kernels' search, each solved once."""
    x = weight.view(weight.shape[0], -1, BLOCK)  # (rows, n_blocks, 32)
    weights = importance.view(-1, BLOCK)
    largest = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    best = scale = torch.zeros_like(largest)
    for step in range(-12, 13):
        q = (x * (-(8.0 + 0.1 * step) / largest).nan_to_num(0, 0, 0)).round().clamp(-8, 7)
        xq, qq = (weights * q * x).sum(-1, keepdim=True), (weights * q * q).sum(-1, keepdim=True)
        explained = torch.where(qq > 0, xq * xq / qq, 0)
        is_better = explained > best
        best, scale = torch.where(is_better, explained, best), torch.where(is_better, xq / qq, scale)
    half = scale.to(torch.float16)
    inverse = torch.where(half != 0, 1 / half.to(torch.float32), 0)
    quants = (x * inverse + 8.5).clamp(0, 15).to(torch.uint8)
    packed = quants[:, :, : BLOCK // 2] | quants[:, :, BLOCK // 2 :] << 4
    return torch.cat((half.view(torch.uint8), packed), dim=-1).flatten(1)
