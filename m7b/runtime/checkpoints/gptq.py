"""Folders of GPTQ and AWQ with 4 bits: `qweight`, `qzeros` and `scales` in the place of each weight.

A weight is (quant - zero) * scale. Both have `qzeros` (groups, out / 8) and `scales` (groups, out).
`qweight` is (in / 8, out) in GPTQ, with eight columns of the weight in a word, and (in, out / 8) in AWQ, with
eight rows. GPTQ may have `g_idx` (in,), the group of each column.

Two conventions are told by the configuration alone: GPTQ stores zero - 1, `gptq_v2` zero; in a word of AWQ
stand the quants of rows 0 2 4 6 1 3 5 7.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
    SHUFFLED,
    WORDS,
    Groups,
    check_finite,
    check_group,
    check_part,
    unpack,
)
from m7b.runtime.checkpoints.quantized import Quantized

_PARTS = ("qweight", "qzeros", "scales", "g_idx", "bias")
_ONES = 0x11111111  # 1 for each of eight zeros
_AWQ_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]  # where rows 0 to 7 stand in a word
_HINT = "m7b reads GPTQ of 4 bits, and AWQ of 4 bits in the version gemm: take such a folder, or a GGUF file"


@dataclass(frozen=True, slots=True)
class _Convention:
    """How a folder stores its weights. `has_one_less`: its zeros are one too small."""

    settings: Fields
    group: object
    is_awq: bool
    has_one_less: bool


@dataclass(frozen=True, slots=True)
class _Layer:
    """The tensors of one weight (out, in), checked. `columns` (in,) has the group of each column.

    Where `is_shuffled`, neighbours are of several groups, and make no blocks.
    """

    qweight: StoredTensor
    qzeros: StoredTensor
    scales: StoredTensor
    columns: Tensor
    is_shuffled: bool
    convention: _Convention


def gather_gptq(settings: Fields, inventory: Mapping[str, StoredTensor]) -> Quantized:
    """What a folder of GPTQ holds; `settings` are its quantization_config, or its quantize_config.json.

    Raises:
        UnsupportedCheckpoint: it has other bits or another layout.
        DamagedCheckpoint: sizes contradict each other.
    """
    layout = settings.raw("checkpoint_format") or settings.raw("format") or "gptq"
    _refuse(settings, "bits", settings.raw("bits"), (4,))
    _refuse(settings, "checkpoint_format", layout, ("gptq", "gptq_v2"))
    _refuse(settings, "pack_dtype", settings.raw("pack_dtype"), (None, "int32"))
    _refuse(settings, "is_marlin_format", settings.raw("is_marlin_format"), (None, False))
    _refuse(settings, "dynamic", settings.raw("dynamic") or None, (None,))
    group = settings.raw("group_size")
    return _gather(_Convention(settings, group, is_awq=False, has_one_less=layout == "gptq"), inventory)


def gather_awq(settings: Fields, inventory: Mapping[str, StoredTensor]) -> Quantized:
    """What a folder of AWQ holds; `settings` are its quantization_config, or its quant_config.json.

    Raises:
        UnsupportedCheckpoint: it has other bits or another layout.
        DamagedCheckpoint: sizes contradict each other.
    """
    bits = settings.raw("bits") if "bits" in settings else settings.raw("w_bit")
    version = settings.raw("version") or settings.raw("format") or "gemm"
    _refuse(settings, "bits", bits, (4,))
    _refuse(settings, "version", version.lower() if isinstance(version, str) else version, ("gemm",))
    _refuse(settings, "zero_point", settings.raw("zero_point"), (None, True))
    group = settings.raw("group_size") if "group_size" in settings else settings.raw("q_group_size")
    return _gather(_Convention(settings, group, is_awq=True, has_one_less=False), inventory)


def _refuse(settings: Fields, key: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise UnsupportedCheckpoint(f"{settings.file}: {key} is {str(value)[:60]}", hint=_HINT)


def _gather(convention: _Convention, inventory: Mapping[str, StoredTensor]) -> Quantized:
    tensors = dict(inventory)
    readers: dict[str, Callable[[], Tensor]] = {}
    block_readers: dict[str, Callable[[], Blocks]] = {}
    for key in inventory:
        if not key.endswith(".qweight"):
            continue
        name = key.removesuffix(".qweight")
        parts = {part: tensors.pop(f"{name}.{part}", None) for part in _PARTS}
        layer = _check_layer(parts, inventory[key], convention)
        weight = f"{name}.weight"
        if weight in inventory:
            raise DamagedCheckpoint(f"{inventory[key].file}: {weight} is there both plain and quantized")
        tensors[weight] = _describe(layer, weight)
        readers[weight] = partial(_read_numbers, layer)
        if not layer.is_shuffled:
            block_readers[weight] = partial(_read_blocks, layer)
        if (bias := parts["bias"]) is not None and torch_files.read(bias).any():
            tensors[bias.source_name] = bias  # one that is not 0 is more than this architecture has
    return Quantized(tensors, readers, block_readers)


def _check_layer(
    parts: Mapping[str, StoredTensor | None], qweight: StoredTensor, convention: _Convention
) -> _Layer:
    if qweight.dtype not in WORDS or len(qweight.shape) != 2 or 0 in qweight.shape:
        raise DamagedCheckpoint(
            f"{qweight.file}: {qweight.source_name} is {qweight.shape} of {qweight.dtype}, not packed quants"
        )
    n_in, n_out = _count_in_out(qweight, convention)
    if n_out % 8:
        raise DamagedCheckpoint(f"{qweight.file}: {qweight.source_name} has {n_out} rows, no multiple of 8")
    group = check_group(convention.group, n_in, qweight)
    n_groups = -(-n_in // group)
    columns = torch.arange(n_in) // group
    order = columns
    if parts["g_idx"] is not None or (convention.settings.raw("desc_act") is True and n_groups > 1):
        order = _read_order(parts["g_idx"], qweight, n_in, n_groups)
    return _Layer(
        qweight,
        check_part(parts["qzeros"], "qzeros", qweight, WORDS, (n_groups, n_out // 8)),
        check_part(parts["scales"], "scales", qweight, FLOATS, (n_groups, n_out)),
        order,
        not torch.equal(order, columns),
        convention,
    )


def _count_in_out(qweight: StoredTensor, convention: _Convention) -> tuple[int, int]:
    first, second = qweight.shape
    return (first, 8 * second) if convention.is_awq else (8 * first, second)


def _describe(layer: _Layer, name: str) -> StoredTensor:
    """The weight as an inventory has it."""
    n_in, n_out = _count_in_out(layer.qweight, layer.convention)
    n_words = math.prod(layer.qweight.shape) + math.prod(layer.qzeros.shape)
    dtype = SHUFFLED if layer.is_shuffled else BLOCKS
    return StoredTensor(name, layer.qweight.file, (n_out, n_in), dtype, 4 * n_words + layer.scales.n_bytes)


def _read_order(g_idx: StoredTensor | None, qweight: StoredTensor, n_in: int, n_groups: int) -> Tensor:
    """The group of each column."""
    g_idx = check_part(g_idx, "g_idx", qweight, ("I32", "I64", "torch.int32"), (n_in,))
    order = torch_files.read(g_idx).long()
    low, high = int(order.min()), int(order.max())
    if low < 0 or high >= n_groups:
        raise DamagedCheckpoint(
            f"{g_idx.file}: {g_idx.source_name} names the groups {low} to {high}, there are {n_groups}",
            hint="fetch the checkpoint again",
        )
    return order


def _read_numbers(layer: _Layer) -> Tensor:
    return _read_groups(layer).numbers()


def _read_blocks(layer: _Layer) -> Blocks:
    return _read_groups(layer).blocks()


def _read_groups(layer: _Layer) -> Groups:
    words = torch_files.read(layer.qweight).view(torch.int32)
    zero_words = torch_files.read(layer.qzeros).view(torch.int32)
    if layer.convention.is_awq:
        quants, zeros = _unpack_awq(words), _unpack_awq(zero_words)
    else:
        # A word is added to as a whole: a zero of 0 had borrowed from its neighbour.
        zeros = unpack(zero_words + _ONES if layer.convention.has_one_less else zero_words).T
        quants = unpack(words.T)
    scales = check_finite(torch_files.read(layer.scales), layer.scales).T
    offsets = check_finite(-scales * zeros, layer.scales)
    return Groups(quants, scales, offsets, layer.columns)


def _unpack_awq(words: Tensor) -> Tensor:
    """Eight rows a word, in AWQ's order: (n, m) of 32 bits become (8 m, n) uint8."""
    columns = words.T.contiguous()
    rows = [(columns >> 4 * place & 15).to(torch.uint8) for place in _AWQ_PLACES]
    return torch.stack(rows, dim=1).flatten(0, 1)
