"""From adapters to what a loaded model adds to its linears."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m7b.runtime.adapters.adapter import Mix
from m7b.runtime.kernels.updates import RANK_STEP
from m7b.runtime.model.transformer import Transformer
from m7b.runtime.model.update import Update


def build_updates(model: Transformer, mix: Mix, devices: Sequence[str]) -> dict[nn.Module, Update]:
    """What `mix` adds to the linears of `model`, in its dtype; `devices` are those of its layers.

    Raises:
        DamagedCheckpoint: an adapter holds values that are not finite.
    """
    dtype = model.norm.weight.dtype
    return {
        model.get_submodule(name.removesuffix(".weight")): _build_update(
            name, mix, dtype, devices[int(name.split(".")[1])]
        )
        for name in _list_names(mix)
    }


def count_bytes(mixes: Iterable[Mix], dtype: torch.dtype) -> int:
    """Bytes that updates take, roughly."""
    parts = (part for mix in mixes for one in mix for part in one.adapter.parts.values())
    return sum((part.rank + RANK_STEP) * (part.down.shape[1] + part.up.shape[0]) for part in parts) * (
        dtype.itemsize
    )


def _list_names(mix: Mix) -> list[str]:
    """The weights to which something is added."""
    return list(dict.fromkeys(name for one in mix if one.scale for name in one.adapter.parts))


def _build_update(name: str, mix: Mix, dtype: torch.dtype, device: str) -> Update:
    """The update of one weight: those of all adapters, rank behind rank."""
    downs, ups, scales = [], [], []
    for one in mix:
        if one.scale and (part := one.adapter.parts.get(name)):
            down, up = one.adapter.read(name)
            downs.append(down)
            ups.append(up)
            scales.append(torch.full((part.rank,), part.scale * one.scale))
    down, up, scale = torch.cat(downs), torch.cat(ups, 1).T, torch.cat(scales)
    n_more = -len(scale) % RANK_STEP

    def place(values: Tensor) -> Tensor:
        return F.pad(values, (0, 0, 0, n_more)).to(device, dtype).contiguous()

    return Update(place(down), place(up), F.pad(scale, (0, n_more)).to(device))
