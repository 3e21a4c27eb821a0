"""Weights in bfloat16 on the CPU, which is bound by memory in decode and by arithmetic in prefill."""

import torch
import torch.nn.functional as F
from torch import Tensor

from m7b.runtime import kernels
from m7b.runtime.checkpoints import Blocks
from m7b.runtime.linears.packed import PackedLinear

_TILE_ROWS = 512


class PrepackedLinear(PackedLinear):
    """A weight in the order that oneDNN likes best: twice as fast in decode as torch's own."""

    def set_weight(self, weight: Tensor | Blocks) -> None:
        """Reorder the weight for oneDNN, which needs a copy."""
        assert isinstance(weight, Tensor)
        self._n_bytes = weight.nbytes
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)

    @property
    def n_bytes(self) -> int:
        """Bytes of the weight before it was reordered; oneDNN does not tell what it takes."""
        return self._n_bytes

    def forward(self, x: Tensor) -> Tensor:
        """(T, in) to (T, out) in the dtype of `x`, rounded to the weight's."""
        y = torch.ops.mkldnn._linear_pointwise(x.to(self._packed.dtype), self._packed, None, "none", [], "")
        return y.to(x.dtype)


class DenseLinear(PackedLinear):
    """A weight as it is stored, mapped where the file is: our kernel, or torch where that is faster.

    Torch multiplies tiles in float32 where the CPU has no bfloat16 arithmetic, and where `x` is float32: its
    own bfloat16 arithmetic would round the sums.
    """

    def set_weight(self, weight: Tensor | Blocks) -> None:
        """Keep the weight as it is."""
        assert isinstance(weight, Tensor)
        self.weight = torch.nn.Parameter(weight.contiguous(), requires_grad=False)

    @property
    def n_bytes(self) -> int:
        """Bytes of the weight."""
        return self.weight.nbytes

    def forward(self, x: Tensor) -> Tensor:
        """(T, in) to (T, out)."""
        if kernels.takes_bf16(x.shape[0]):
            return kernels.linear_bf16(self.weight, x)
        if x.dtype == torch.bfloat16 and kernels.torch_multiplies_bf16():
            return F.linear(x, self.weight)
        wide = x.to(torch.float32)
        tiles = torch.split(self.weight, _TILE_ROWS)
        return torch.cat([F.linear(wide, tile.to(torch.float32)).to(x.dtype) for tile in tiles], dim=-1)
