"""Folders that MLX has quantized to 4 bits: `weight` packed along its rows, `scales` and `biases` beside it.

`weight` is (out, in / 8) of 32 bits, `scales` and `biases` (out, groups). A value is quant * scale + bias.
The embeddings and the output are quantized too. A layer can have settings of its own, under its name.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from m7b.errors import DamagedCheckpoint, UnsupportedCheckpoint
from m7b.runtime.checkpoints import torch_files
from m7b.runtime.checkpoints.checkpoint import Blocks, StoredTensor
from m7b.runtime.checkpoints.fields import Fields
from m7b.runtime.checkpoints.groups import (
    BLOCKS,
    FLOATS,
    WORDS,
    Groups,
    check_finite,
    check_group,
    check_part,
    unpack,
)
from m7b.runtime.checkpoints.quantized import Quantized

_HINT = "m7b reads MLX of 4 bits in the mode affine: take such a folder, or a GGUF file"


def gather_mlx(settings: Fields, inventory: Mapping[str, StoredTensor]) -> Quantized:
    """What a folder of MLX holds; `settings` are its `quantization`.

    Raises:
        UnsupportedCheckpoint: it has other bits or another mode.
        DamagedCheckpoint: sizes contradict each other.
    """
    tensors = dict(inventory)
    readers: dict[str, Callable[[], Tensor]] = {}
    block_readers: dict[str, Callable[[], Blocks]] = {}
    for key in inventory:
        if not key.endswith(".scales"):
            continue
        layer = key.removesuffix(".scales")
        weight = inventory.get(f"{layer}.weight")
        if weight is None:
            raise DamagedCheckpoint(
                f"{inventory[key].file}: {key} has no weight", hint="fetch the checkpoint again"
            )
        group = _find_group(settings, layer)
        scales, biases = tensors.pop(key), tensors.pop(f"{layer}.biases", None)
        read = _check_layer(weight, group, scales, biases)
        n_out, n_words = weight.shape
        n_bytes = 4 * n_out * n_words + 2 * scales.n_bytes
        tensors[weight.source_name] = replace(
            weight, shape=(n_out, 8 * n_words), dtype=BLOCKS, n_bytes=n_bytes
        )
        readers[weight.source_name] = partial(_read_numbers, read)
        block_readers[weight.source_name] = partial(_read_blocks, read)
    return Quantized(tensors, readers, block_readers)


def _find_group(settings: Fields, layer: str) -> object:
    """The group size of a layer: its own, or that of all."""
    own = settings.raw(layer)
    chosen = Fields(settings.file, own) if isinstance(own, dict) else settings
    for key, value, allowed in (
        ("bits", chosen.raw("bits"), (4,)),
        ("mode", chosen.raw("mode") or settings.raw("mode"), (None, "affine")),
    ):
        if value not in allowed:
            what = f"quantization of {layer}" if chosen is not settings else "quantization"
            raise UnsupportedCheckpoint(f"{settings.file}: {what} has {key} {str(value)[:60]}", hint=_HINT)
    return chosen.raw("group_size")


def _check_layer(
    weight: StoredTensor, group: object, scales: StoredTensor, biases: StoredTensor | None
) -> Callable[[], Groups]:
    """What reads the layer, once its sizes are found to fit."""
    if weight.dtype not in WORDS or len(weight.shape) != 2 or 0 in weight.shape:
        raise DamagedCheckpoint(
            f"{weight.file}: {weight.source_name} is {weight.shape} of {weight.dtype}, not packed quants"
        )
    n_out, n_in = weight.shape[0], 8 * weight.shape[1]
    size = check_group(group, n_in, weight)
    shape = (n_out, -(-n_in // size))
    check_part(scales, "scales", weight, FLOATS, shape)
    offsets = check_part(biases, "biases", weight, FLOATS, shape)
    columns = torch.arange(n_in) // size
    return partial(_read_groups, weight, scales, offsets, columns)


def _read_groups(weight: StoredTensor, scales: StoredTensor, biases: StoredTensor, columns: Tensor) -> Groups:
    quants = unpack(torch_files.read(weight).view(torch.int32))
    factors, offsets = (check_finite(torch_files.read(part), part) for part in (scales, biases))
    return Groups(quants, factors, offsets, columns)


def _read_numbers(read: Callable[[], Groups]) -> Tensor:
    return read().numbers()


def _read_blocks(read: Callable[[], Groups]) -> Blocks:
    return read().blocks()
