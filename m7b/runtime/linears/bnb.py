"""The quantizations of bitsandbytes (arXiv 2305.14314, 2208.07339), on any device that it runs on."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from m7b.runtime import kernels
from m7b.runtime.checkpoints import Blocks
from m7b.runtime.linears.packed import PackedLinear
from m7b.runtime.model.operations import LinearFactory

_OUTLIER = 6.0  # activations beyond it are not quantized: section 3.2 of LLM.int8(), transformers' default
BLOCK = kernels.LEVELS_BLOCK
"""Weights under one scale, the default of bitsandbytes."""
_PANEL = 32  # rows that bitsandbytes interleaves on a CPU with AVX-512 and bfloat16


def make_four_bit_factory(quant_type: str, dtype: torch.dtype, *, has_kernels: bool) -> LinearFactory:
    """Layers of `nf4` or `fp4` in `dtype`: bitsandbytes', or ours where it has none for the processor."""
    theirs = partial(FourBitLinear, quant_type=quant_type, dtype=dtype)
    if dtype != torch.bfloat16 or not has_kernels:
        return theirs

    def make(in_features: int, out_features: int) -> PackedLinear:
        from bitsandbytes.functional import has_avx512bf16

        if has_avx512bf16() or in_features % BLOCK:  # type: ignore[no-untyped-call]
            return theirs(in_features, out_features)
        return LevelLinear(in_features, out_features, quant_type)

    return make


class LevelLinear(PackedLinear):
    """NF4 or FP4 in bfloat16 by our kernel: bitsandbytes would widen the whole weight for every token."""

    def __init__(self, in_features: int, out_features: int, quant_type: str) -> None:
        super().__init__(in_features, out_features)
        self._quant_type = quant_type

    def set_weight(self, weight: Tensor | Blocks) -> None:
        """Quantize the weight as bitsandbytes does."""
        from bitsandbytes.functional import quantize_4bit

        assert isinstance(weight, Tensor)
        quants, state = quantize_4bit(
            weight.to(torch.bfloat16).contiguous(), blocksize=BLOCK, quant_type=self._quant_type
        )
        self._weight = kernels.LevelWeight(quants, state.absmax, state.code)

    @property
    def n_bytes(self) -> int:
        """Bytes of the quants and the scales."""
        return self._weight.quants.nbytes + self._weight.scales.nbytes

    def forward(self, x: Tensor) -> Tensor:
        """(T, in) to (T, out)."""
        return kernels.linear_levels(x, self._weight, self.out_features)


class FourBitLinear(PackedLinear):
    """NF4 or FP4: 16 levels, one float32 scale for 64 weights."""

    def __init__(self, in_features: int, out_features: int, quant_type: str, dtype: torch.dtype) -> None:
        super().__init__(in_features, out_features)
        self._quant_type, self._dtype = quant_type, dtype

    def set_weight(self, weight: Tensor | Blocks) -> None:
        """Quantize the weight where it is, and put it into the order that the processor likes best."""
        import bitsandbytes

        assert isinstance(weight, Tensor)
        layers: Any = bitsandbytes.nn
        kind = {"compress_statistics": False, "quant_type": self._quant_type}
        self._layer = layers.Linear4bit(
            self.in_features, self.out_features, bias=False, compute_dtype=self._dtype, device="meta", **kind
        )
        weight = weight.to(self._dtype).contiguous()
        self._layer.weight = layers.Params4bit(weight, requires_grad=False, blocksize=BLOCK, **kind)
        if self._dtype != torch.bfloat16 or self.out_features % _PANEL or self.in_features % BLOCK:
            self._layer.support_avx512bf16_for_cpu = False  # its order is for bfloat16 and whole panels
        self._layer.to(weight.device).eval()  # the move quantizes
        if self._layer.support_avx512bf16_for_cpu:
            with torch.inference_mode():
                self(weight.new_zeros(1, self.in_features))  # the first call puts it into order

    @property
    def n_bytes(self) -> int:
        """Bytes of the quants and the scales."""
        weight = self._layer.weight
        return int(weight.nbytes + weight.quant_state.absmax.nbytes)

    def forward(self, x: Tensor) -> Tensor:
        """(T, in) to (T, out)."""
        product: Tensor = self._layer(x)
        return product


class Int8Linear(PackedLinear):
    """LLM.int8(): one scale a row, outliers of the activations in the model's dtype."""

    def set_weight(self, weight: Tensor | Blocks) -> None:
        """Quantize the weight on its device."""
        from bitsandbytes.nn.modules import Int8Params, Linear8bitLt

        assert isinstance(weight, Tensor)
        self._layer = Linear8bitLt(
            self.in_features, self.out_features, bias=False, has_fp16_weights=False, threshold=_OUTLIER
        )
        self._layer.weight = Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
        self._layer.to(weight.device).eval()  # type: ignore[no-untyped-call]  # the move quantizes

    @property
    def n_bytes(self) -> int:
        """Bytes of the quants and the scales."""
        return self._layer.weight.nbytes + 4 * self.out_features

    def forward(self, x: Tensor) -> Tensor:
        """(T, in) to (T, out) in the dtype of `x`, multiplied in float16 as the method is."""
        return self._layer(x.to(torch.float16)).to(x.dtype)
