"""The operations that a forward pass is made of, and which implementation a device and dtype get.

Torch's are the definition; the native kernels do the same in fewer passes over memory.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from m7b.runtime import attention, kernels, rope


@dataclass(frozen=True, slots=True)
class Primitives:
    """Shapes: T tokens, S slots, H heads, K kv heads, D head_dim.

    `attend` takes queries (T, H, D), keys and values (K, S, D) and a score bias; `rotate` x (T, heads, D)
    with cosines and sines (T, 1, D/2); `rms_norm` x (T, dim), its weight (dim,) and eps; `swiglu` gate
    and up, both (T, hidden_dim).
    """

    attend: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    rotate: Callable[[Tensor, Tensor, Tensor], Tensor]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    swiglu: Callable[[Tensor, Tensor], Tensor]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale by the root mean square in float32, round to the model dtype, then weigh."""
    wide = x.to(torch.float32)
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return scaled.to(x.dtype) * weight


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    return F.silu(gate) * up


TORCH = Primitives(attention.attend, rope.rotate, rms_norm, swiglu)


def choose_primitives(device: str, dtype: torch.dtype, head_dim: int) -> Primitives:
    """The native kernels for bfloat16 on the CPU, else torch's own operations."""
    if device != "cpu" or dtype != torch.bfloat16 or head_dim % 16 or not kernels.instruction_set():
        return TORCH
    return Primitives(kernels.attend, kernels.rotate, kernels.rms_norm, kernels.swiglu)
