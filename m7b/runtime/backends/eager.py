"""The operations of a forward pass in torch: the definition of what other backends do in fewer passes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from m7b.runtime.cache import CacheRow, RollingKVCache, visible
from m7b.runtime.model import rope
from m7b.runtime.model.attention import attend, score_bias
from m7b.runtime.model.batch import Span
from m7b.runtime.model.operations import Operations
from m7b.runtime.model.update import add_update


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale by the root mean square in float32, round to the model dtype, then weigh."""
    wide = x.to(torch.float32)
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return scaled.to(x.dtype) * weight


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    return F.silu(gate) * up


@dataclass(frozen=True, slots=True)
class TorchAttention:
    """The attention of one batch: where each span is kept, and what its tokens see, (G * T, S) each."""

    spans: Sequence[Span]
    rows: Sequence[CacheRow]
    biases: Sequence[Tensor]

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Operations.attention`."""
        mixed, at = torch.empty_like(queries), 0
        for span, row, bias in zip(self.spans, self.rows, self.biases, strict=True):
            part, at = slice(at, at + span.n), at + span.n
            filled = row.write(layer, span, keys[part].transpose(0, 1), values[part].transpose(0, 1))
            mixed[part] = attend(queries[part], *filled, bias.to(queries.device))
        return mixed


def prepare_attention(cache: RollingKVCache, spans: Sequence[Span], like: Tensor) -> TorchAttention:
    """See `Operations.attention`."""
    n_groups = cache.config.n_heads // cache.config.n_kv_heads
    rows = [cache[span.row] for span in spans]
    biases = []
    for span, row in zip(spans, rows, strict=True):
        queries = torch.arange(span.first, span.end, device=like.device)
        seen = visible(queries, row.slot_positions(span.end).to(like.device), row.window)
        biases.append(score_bias(seen, n_groups, like.dtype))
    return TorchAttention(spans, rows, biases)


TORCH = Operations(prepare_attention, rope.rotate, rms_norm, swiglu, add_update)
