"""Which columns of a weight matter: those whose inputs are large when a model reads a text."""

from collections.abc import Generator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from m7b.runtime.engine import Engine
from m7b.runtime.linears.packed import PackedLinear
from m7b.runtime.model.transformer import Linear


def column_importance(
    engine: Engine, ids: Sequence[int], ctx_size: int
) -> Generator[int, None, dict[str, Tensor]]:
    """The mean square of each input (in,) of each linear of `engine`, by the name of its weight.

    `ids` are read in windows of `ctx_size` that do not overlap; tells how many are done.
    """
    sums: dict[str, Tensor] = {}

    def add(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].to(torch.float32)  # (T, in)
        sums[name] = sums.get(name, 0) + x.square().sum(0)

    plain = engine.unfuse()
    hooks = [
        layer.register_forward_pre_hook(partial(add, f"{name}.weight"))
        for name, layer in engine.model.named_modules()
        if isinstance(layer, Linear | PackedLinear)
    ]
    try:
        for start in range(0, len(ids), ctx_size):
            for rows in plain.logits(ids[start : start + ctx_size]):
                start += len(rows)
                yield start
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / len(ids) for name, total in sums.items()}
