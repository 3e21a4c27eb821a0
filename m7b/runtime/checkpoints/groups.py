"""Weights of 4 bits whose scale and offset are shared by groups: `quant * scale + offset`.

GPTQ, AWQ and MLX all store them so. A block of Q4_1 has the same three, so such weights become blocks with no
rounding but that of scale and offset to float16. Knows nothing of how a format packs or names them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from m7b.errors import DamagedCheckpoint, UnsupportedCheckpoint
from m7b.runtime.checkpoints.checkpoint import Blocks, StoredTensor
from m7b.runtime.checkpoints.fields import MAX_DIM

BLOCKS, SHUFFLED = "Q4_1", "GPTQ with desc_act"
DTYPES = dict.fromkeys((BLOCKS, SHUFFLED), torch.bfloat16)
"""What the weights count as in an inventory, and the dtype to run them in."""

BLOCK = 32
"""The values in a block of Q4_1."""
FLOATS = ("F16", "BF16", "F32")
"""What scales and offsets are stored in."""
WORDS = ("I32", "U32", "torch.int32", "torch.uint32")
"""What eight quants are packed into."""
_ROWS = 256  # of a weight that are worked on at a time, while they are in the cache


@dataclass(frozen=True, slots=True)
class Groups:
    """A weight: `quants` (out, in) uint8 from 0 to 15, `scales` and `offsets` (out, groups) float32.

    Column i has the scale of the group `columns[i]`.
    """

    quants: Tensor
    scales: Tensor
    offsets: Tensor
    columns: Tensor

    def numbers(self) -> Tensor:
        """The values (out, in) float32; of GPTQ and AWQ without rounding."""
        values = torch.empty(self.quants.shape)
        parts = (torch.split(part, _ROWS) for part in (values, self.quants, self.scales, self.offsets))
        for to, quants, scales, offsets in zip(*parts, strict=True):
            torch.mul(quants, scales[:, self.columns], out=to)
            to += offsets[:, self.columns]
        return values

    def blocks(self) -> Blocks:
        """In blocks of Q4_1; neighbours are of one group."""
        n_rows = len(self.quants)
        quants = self.quants.view(n_rows, -1, BLOCK)
        first, last = torch.split(quants, BLOCK // 2, dim=-1)
        groups = self.columns[::BLOCK]
        ends = [_as_bytes(values[:, groups]) for values in (self.scales, self.offsets)]
        return Blocks(BLOCKS, torch.cat((*ends, first | last << 4), dim=-1).view(n_rows, -1))


def unpack(words: Tensor) -> Tensor:
    """Eight quants a word, the lowest bits first: (rows, n) of 32 bits become (rows, 8 n) uint8."""
    packed = words.contiguous().view(torch.uint8)
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def check_group(group: object, n_columns: int, source: StoredTensor) -> int:
    """The columns of `source` that share a scale; a `group` of -1 is all of a row.

    Raises:
        UnsupportedCheckpoint: they cannot be cut into blocks.
    """
    size = n_columns if group == -1 else group
    if type(size) is not int or not 0 < size <= MAX_DIM or size % BLOCK or n_columns % BLOCK:
        raise UnsupportedCheckpoint(
            f"{source.file}: {source.source_name} has groups of {str(group)[:20]} in rows of {n_columns}",
            hint=f"m7b reads groups of a multiple of {BLOCK}: 32, 64, 128 or -1",
        )
    return size


def check_part(
    part: StoredTensor | None,
    name: str,
    source: StoredTensor,
    dtypes: tuple[str, ...],
    shape: tuple[int, ...],
) -> StoredTensor:
    """The tensor that belongs to `source`.

    Raises:
        DamagedCheckpoint: it is missing, of another dtype or of another shape.
    """
    if part is None:
        raise DamagedCheckpoint(
            f"{source.file}: {source.source_name} has no {name}", hint="fetch the checkpoint again"
        )
    if part.dtype not in dtypes or part.shape != shape:
        raise DamagedCheckpoint(
            f"{part.file}: {part.source_name} is {part.shape} of {part.dtype}, "
            f"{source.source_name} needs {shape} of {' or '.join(dtypes[:3])}"
        )
    return part


def check_finite(values: Tensor, source: StoredTensor) -> Tensor:
    """The scales or offsets `values` in float32.

    Raises:
        DamagedCheckpoint: float16, which blocks have, cannot hold them.
    """
    if not values.to(torch.float16).isfinite().all():
        raise DamagedCheckpoint(
            f"{source.file}: the scales of {source.source_name} are not finite in float16",
            hint="fetch the checkpoint again",
        )
    return values.to(torch.float32)


def _as_bytes(values: Tensor) -> Tensor:
    """Each of `values` (rows, n) in float16, as two bytes (rows, n, 2)."""
    return values.to(torch.float16).contiguous().view(torch.uint8).view(*values.shape, 2)
