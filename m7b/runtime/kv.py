"""How rings hold keys and values: as numbers, or in blocks of 8 bits. Knows tensors; knows no positions.

A block is KV_BLOCK numbers of one head, the last perhaps fewer: quants from -127 to 127 under one scale,
which is bfloat16, since a key has its range. All quants of a head come first, each 128 more than it is, then
the scales.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from m7b.generation import KvType
from m7b.runtime.model.config import KV_BLOCK, count_kv_bytes

_ZERO = 128  # what stands for the quant 0


@dataclass(frozen=True, slots=True)
class Numbers:
    """Keys and values as numbers of `dtype`."""

    dtype: torch.dtype

    def make_ring(self, shape: tuple[int, int, int], device: str) -> Tensor:
        """An unwritten ring for `shape` (K, S, D)."""
        return torch.empty(shape, dtype=self.dtype, device=device)

    def encode(self, numbers: Tensor) -> Tensor:
        """What a ring holds of `numbers` (..., D)."""
        return numbers.to(self.dtype)

    def decode(self, held: Tensor, dtype: torch.dtype) -> Tensor:
        """The numbers (..., D) of what a ring holds."""
        return held.to(dtype)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Keys and values of `head_dim` numbers in blocks of 8 bits, with the bits that the kernels write."""

    head_dim: int

    def make_ring(self, shape: tuple[int, int, int], device: str) -> Tensor:
        """An unwritten ring for `shape` (K, S, D)."""
        n_bytes = count_kv_bytes(self.head_dim, 1, KvType.Q8_0)
        return torch.empty((*shape[:2], n_bytes), dtype=torch.uint8, device=device)

    def encode(self, numbers: Tensor) -> Tensor:
        """What a ring holds of `numbers` (..., D): bytes (..., n_bytes)."""
        blocks = self._cut(numbers.to(torch.bfloat16).float())  # (..., blocks, KV_BLOCK)
        scales = (blocks.abs().amax(-1) / 127).bfloat16()
        scales = torch.where(blocks.isfinite().all(-1), scales, torch.nan)  # or none of them is a number
        divisors = torch.where(scales > 0, scales, torch.inf).float()
        quants = (blocks / divisors[..., None]).nan_to_num(0).round().clamp(-127, 127) + _ZERO
        quants = quants.to(torch.uint8).flatten(-2)[..., : self.head_dim]
        return torch.cat((quants, scales.contiguous().view(torch.uint8)), -1)

    def decode(self, held: Tensor, dtype: torch.dtype) -> Tensor:
        """The numbers (..., D) of what a ring holds."""
        quants = held[..., : self.head_dim].float() - _ZERO
        scales = held[..., self.head_dim :].contiguous().view(torch.bfloat16)
        numbers = self._cut(quants) * scales.float()[..., None]
        return numbers.flatten(-2)[..., : self.head_dim].to(dtype)

    def _cut(self, numbers: Tensor) -> Tensor:
        """`numbers` (..., D) in blocks (..., blocks, KV_BLOCK), the last filled up with zeros."""
        return F.pad(numbers, (0, -self.head_dim % KV_BLOCK)).unfold(-1, KV_BLOCK, KV_BLOCK)


KvFormat = Numbers | Blocks


def choose_format(kv_type: str | None, dtype: torch.dtype, head_dim: int) -> KvFormat:
    """The format that `kv_type` names, for a model that runs in `dtype`."""
    match kv_type:
        case KvType.Q8_0:
            return Blocks(head_dim)
        case KvType.BF16:
            return Numbers(torch.bfloat16)
    return Numbers(dtype)
