"""The operations that a forward pass is made of, whoever computes them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from m7b.runtime.cache import RollingKVCache
from m7b.runtime.model.batch import Span
from m7b.runtime.model.update import Update

LinearFactory = Callable[[int, int], nn.Module]
"""Makes the layer that maps (N, in) to (N, out) without a bias, in the dtype of what it is given.

That is the model's, but float32 for the output, whose sums should not be rounded where the layer can help it.
"""

EmbeddingFactory = Callable[[int, int], nn.Module]
"""Makes the layer that maps (N,) ids below the first number to (N, the second number)."""


class Attend(Protocol):
    """The attention of one batch, layer by layer."""

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Write `keys` and `values` (N, K, D) to the rings of `layer`; attend with `queries`: (N, H, D)."""
        ...


Project = Callable[[nn.Module, Tensor], Tensor]
"""A linear of a layer times x (N, in), with what adapters add for the tokens of one batch: (N, out)."""


@dataclass(frozen=True, slots=True)
class Operations:
    """Shapes: N tokens, S slots, H heads, K kv heads, D head_dim.

    `attention` prepares that of a batch's spans over a cache, for activations like a given tensor; `rotate`
    takes x (N, heads, D) with cosines and sines (N, 1, D/2); `rms_norm` x (N, dim), its weight (dim,) and
    eps; `swiglu` gate and up, both (N, hidden_dim). `add_update` adds to y (N, out) what an update makes of
    x (N, in).
    """

    attention: Callable[[RollingKVCache, Sequence[Span], Tensor], Attend]
    rotate: Callable[[Tensor, Tensor, Tensor], Tensor]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    swiglu: Callable[[Tensor, Tensor], Tensor]
    add_update: Callable[[Tensor, Tensor, Update], None]
