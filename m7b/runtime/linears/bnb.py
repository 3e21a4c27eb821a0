"""The quantizations of bitsandbytes (arXiv 2305.14314, 2208.07339), on any device that it runs on."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from m7b.runtime.checkpoints import Blocks
from m7b.runtime.linears.packed import PackedLinear
from m7b.runtime.model import LinearFactory

_OUTLIER = 6.0  # activations beyond it are not quantized: section 3.2 of LLM.int8(), transformers' default
BLOCK = 64
"""Weights under one scale, the default of bitsandbytes."""
_PANEL = 32  # rows that bitsandbytes interleaves on a CPU with AVX-512 and bfloat16


class FourBitLinear(PackedLinear):
    """NF4 or FP4: 16 levels, one float32 scale for 64 weights."""

    def __init__(self, in_features: int, out_features: int, quant_type: str, dtype: torch.dtype) -> None:
        super().__init__(in_features, out_features)
        self._quant_type, self._dtype = quant_type, dtype

    @classmethod
    def factory(cls, quant_type: str, dtype: torch.dtype) -> LinearFactory:
        """Layers of one type that compute in `dtype`."""
        return partial(cls, quant_type=quant_type, dtype=dtype)

    def take(self, weight: Tensor | Blocks) -> None:
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

    def take(self, weight: Tensor | Blocks) -> None:
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
        """(T, in) to (T, out)."""
        return self._layer(x)
