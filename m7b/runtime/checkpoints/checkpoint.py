"""What every checkpoint format is turned into, and the check that it is whole before it is loaded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch

from m7b.errors import DamagedCheckpoint, UnsupportedCheckpoint
from m7b.runtime.model.config import ModelConfig
from m7b.tokenizer import TokenizerSource

BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}
"""The types of `Blocks`, by GGUF's name, and the bytes that 32 values take."""
_ROWS = 256  # of a weight that are turned into numbers at a time, while they are in the cache


class Format(StrEnum):
    """How a checkpoint is laid out on disk."""

    HF = "hf"
    NATIVE = "native"
    GGUF = "gguf"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as its file describes it: `shape` is (out, in) for a linear, `dtype` the file's word."""

    source_name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Blocks:
    """A quantized weight as GGUF stores it: `data` (out, bytes) uint8, rows of blocks of one `type`."""

    type: str
    data: torch.Tensor

    def numbers(self, dtype: torch.dtype) -> torch.Tensor:
        """The values (out, in) that the blocks stand for. (Layout: ggml-common.h.)"""
        size = BLOCK_BYTES[self.type]
        n_rows, n_blocks = self.data.shape[0], self.data.shape[1] // size
        stored = self.data.view(n_rows, n_blocks, size)
        values = torch.empty(n_rows, n_blocks, 32, dtype=dtype)
        for blocks, to in zip(torch.split(stored, _ROWS), torch.split(values, _ROWS), strict=True):
            scale = blocks[:, :, :2].contiguous().view(torch.float16).to(torch.float32)
            if self.type == "Q8_0":
                to.copy_(blocks[:, :, 2:].view(torch.int8) * scale)
                continue
            nibbles = blocks[:, :, -16:]
            quants = torch.cat((nibbles & 15, nibbles >> 4), dim=-1)
            if self.type == "Q4_0":
                to.copy_((quants.to(torch.int8) - 8) * scale)
            else:
                to.copy_(quants * scale + blocks[:, :, 2:4].contiguous().view(torch.float16))
        return values.flatten(1)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was looked at and not yet loaded.

    `tensors` has exactly the canonical names and shapes of `config`. `read` gives one of them in
    canonical row order, and `read_blocks` does so without turning quantized blocks into numbers; only
    formats that have such blocks bring it. `stop_ids` end an answer. `license` is what the file says of
    it, perhaps nothing. `note` is for the user, empty where all is well. `quant` is the quantization of
    bitsandbytes that its layers are stored in.
    """

    path: Path
    format: Format
    config: ModelConfig
    dtype: torch.dtype
    tensors: Mapping[str, StoredTensor]
    read: Callable[[str], torch.Tensor]
    tokenizer: TokenizerSource | None
    stop_ids: frozenset[int]
    chat_template: str | None
    license: str = ""
    note: str = ""
    read_blocks: Callable[[str], Blocks] | None = None
    quant: str | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of weights on disk."""
        return sum(tensor.n_bytes for tensor in self.tensors.values())

    def find_requantized(self, quant: str) -> str:
        """The quantized types of matrices here that `quant` would round once more, empty for none."""
        types = {tensor.dtype for tensor in self.tensors.values() if len(tensor.shape) == 2}
        exact = {"F32", "F16", "BF16", quant.upper()}
        return ", ".join(sorted(types - exact)) if quant != "none" else ""


def match_tensors(
    path: Path,
    config: ModelConfig,
    stored: Mapping[str, StoredTensor],
    dtypes: Mapping[str, object],
    source_names: Mapping[str, str],
) -> dict[str, StoredTensor]:
    """The `stored` tensors, keyed by their files' names, under the canonical names of `config`.

    `source_names` translates, as `translate_name` does.

    Raises:
        DamagedCheckpoint: a tensor is missing, extra or of another shape.
        UnsupportedCheckpoint: a tensor is of a dtype not in `dtypes`.
    """
    shapes = config.tensor_shapes()
    names = {name: translate_name(name, source_names) for name in shapes}
    missing = sorted(set(names.values()) - stored.keys())
    if missing:
        raise DamagedCheckpoint(
            f"{path}: {len(missing)} of {len(shapes)} tensors are missing, the first is {missing[0]}",
            hint="fetch the checkpoint again",
        )
    extra = sorted(stored.keys() - set(names.values()))
    if extra:
        raise DamagedCheckpoint(
            f"{stored[extra[0]].file}: {len(extra)} tensors more than the {len(shapes)} "
            f"of this architecture, the first is {extra[0]}",
            hint="m7b runs plain Mistral and Llama models without biases or adapters",
        )
    for name, shape in shapes.items():
        tensor = stored[names[name]]
        if tensor.shape != shape:
            raise DamagedCheckpoint(
                f"{tensor.file}: {tensor.source_name} is {_dims(tensor.shape)}, "
                f"the configuration says {_dims(shape)}"
            )
        if tensor.dtype not in dtypes:
            raise UnsupportedCheckpoint(
                f"{tensor.file}: {tensor.source_name} is stored as {tensor.dtype}",
                hint=f"m7b reads {', '.join(dtypes)}",
            )
    return {name: stored[names[name]] for name in shapes}


def translate_name(name: str, source_names: Mapping[str, str]) -> str:
    """What a format calls the tensor with the canonical `name`.

    `source_names` maps the parts of canonical names: `layers.3.attention.wq.weight` is looked up as
    `layers` and `attention.wq`. A part that is not listed is the same in both.
    """
    module = name.removesuffix(".weight")
    if not module.startswith("layers."):
        return f"{source_names.get(module, module)}.weight"
    layers, number, part = module.split(".", 2)
    return f"{source_names.get(layers, layers)}.{number}.{source_names.get(part, part)}.weight"


def _dims(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"
