"""Layers that bitsandbytes has quantized, as transformers stores them: each weight with its scales beside it.

4 bits: `weight` packed, `weight.absmax`, perhaps `weight.nested_absmax`, and `weight.quant_state` with
JSON in bytes. 8 bits: `weight` int8 and `SCB`, a scale for each row. They are read as numbers.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from m7b.errors import DamagedCheckpoint
from m7b.runtime.checkpoints import torch_files
from m7b.runtime.checkpoints.checkpoint import StoredTensor
from m7b.runtime.checkpoints.fields import Fields
from m7b.runtime.checkpoints.quantized import Quantized

DTYPES = dict.fromkeys(("NF4", "FP4", "INT8"), torch.bfloat16)
"""What the weights count as in an inventory, and the dtype to run them in."""

_STATE = re.compile(r"(.+\.weight)\.quant_state\.bitsandbytes__(nf4|fp4)")
_MAX_STATE_BYTES = 4096
_BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


def gather_bnb(settings: Fields, inventory: Mapping[str, StoredTensor]) -> Quantized:
    """What a folder of bitsandbytes holds; `settings` are its quantization_config.

    Raises:
        DamagedCheckpoint: sizes contradict each other.
    """
    tensors, readers = dict(inventory), dict[str, Callable[[], Tensor]]()
    quant = "int8" if settings.raw("load_in_8bit") else ""
    for key in inventory:
        if match := _STATE.fullmatch(key):
            name, quant = match.groups()
            parts = {k: t for k, t in inventory.items() if k.startswith(f"{name}.")}
            tensors = {k: t for k, t in tensors.items() if k not in parts}
            tensors[name], readers[name] = _four_bit(inventory.get(name), quant, parts, key)
        elif key.endswith(".SCB"):
            layer = key.removesuffix("SCB")
            tensors.pop(key)
            tensors.pop(f"{layer}weight_format", None)
            tensors[f"{layer}weight"], readers[f"{layer}weight"] = _int8(
                inventory.get(f"{layer}weight"), inventory[key]
            )
    return Quantized(tensors, readers, quant=quant)


def _four_bit(
    packed: StoredTensor | None, quant: str, parts: Mapping[str, StoredTensor], state_name: str
) -> tuple[StoredTensor, Callable[[], Tensor]]:
    state = parts[state_name]
    if packed is None or packed.dtype != "U8" or state.dtype != "U8" or state.n_bytes > _MAX_STATE_BYTES:
        raise DamagedCheckpoint(f"{state.file}: {state_name} describes no packed weight")
    try:
        described: Any = json.loads(bytes(torch_files.read(state).tolist()))
        shape, block, nested_block = (
            tuple(described["shape"]),
            described["blocksize"],
            described.get("nested_blocksize"),
        )
        n = math.prod(shape)
        is_known = described["dtype"] in ("float16", "bfloat16", "float32") and block in _BLOCK_SIZES
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedCheckpoint(f"{state.file}: {state_name} is unreadable: {error!r}") from None
    name = packed.source_name
    is_matrix = len(shape) > 1 and all(type(size) is int and size > 0 for size in shape)
    if not is_known or not is_matrix or packed.n_bytes != (n + 1) // 2:
        raise DamagedCheckpoint(f"{packed.file}: {name} is not of the size that it claims")
    # bitsandbytes looks nothing of this up before it reads.
    n_scales, expected = -(-n // block), {"quant_map": ("F32", 16), "absmax": ("F32", -(-n // block))}
    if nested_block is not None:
        if nested_block not in _BLOCK_SIZES:
            raise DamagedCheckpoint(f"{state.file}: {state_name} has blocks of {nested_block!r}")
        expected |= {
            "absmax": ("U8", n_scales),
            "nested_absmax": ("F32", -(-n_scales // nested_block)),
            "nested_quant_map": ("F32", 256),
        }
    for key, (dtype, size) in expected.items():
        part = parts.get(f"{name}.{key}")
        if part is None or part.dtype != dtype or math.prod(part.shape) != size:
            raise DamagedCheckpoint(f"{packed.file}: {name}.{key} should be {size} of {dtype}")

    def read() -> Tensor:
        from bitsandbytes.functional import QuantState, dequantize_4bit

        values = {key.removeprefix(f"{name}."): torch_files.read(part) for key, part in parts.items()}
        try:
            found: Tensor = dequantize_4bit(
                torch_files.read(packed), QuantState.from_dict(values, torch.device("cpu"))
            )
        except (KeyError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            raise DamagedCheckpoint(f"{packed.file}: {name} cannot be read: {error}") from None
        return found.view(shape)

    return replace(packed, shape=shape, dtype=quant.upper()), read


def _int8(weight: StoredTensor | None, scales: StoredTensor) -> tuple[StoredTensor, Callable[[], Tensor]]:
    if weight is None or weight.dtype != "I8" or scales.shape != weight.shape[:1]:
        raise DamagedCheckpoint(f"{scales.file}: {scales.source_name} has no weight of as many rows")

    def read() -> Tensor:
        rows: Tensor = torch_files.read(weight) * (torch_files.read(scales).to(torch.float32) / 127)[:, None]
        return rows

    return replace(weight, dtype="INT8"), read
