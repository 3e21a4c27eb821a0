"""What every checkpoint format is turned into, and the check that it is whole before it is loaded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch

from m7b.errors import DamagedCheckpoint, UnsupportedCheckpoint
from m7b.runtime import kernels
from m7b.runtime.kernels import BlockType
from m7b.runtime.model.config import ModelConfig
from m7b.tokenizer import TokenizerSource

_ROWS = 256  # of a weight that are turned into numbers at a time, while they are in the cache
_NUMBERS = {"F32", "F16", "BF16"}  # the types of GGUF that are not quantized


class Format(StrEnum):
    """How a checkpoint is laid out on disk."""

    HF = "hf"
    NATIVE = "native"
    GGUF = "gguf"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as its file describes it: `shape` is (out, in) for a linear, `dtype` the file's word.

    Of a weight that becomes blocks, `dtype` is theirs.
    """

    source_name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Blocks:
    """A quantized weight as GGUF stores it: `data` (out, bytes) uint8, rows of blocks of one `type`.

    The type is that of a `BlockType`, by GGUF's name.
    """

    type: str
    data: torch.Tensor

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """The values (out, in) that the blocks stand for, computed in float32."""
        if not kernels.instruction_set():
            return dequantize_by_gguf(self.type, self.data).to(dtype)
        type = BlockType[self.type]
        if dtype == torch.float32:
            return kernels.dequantize(type, self.data)
        n_rows, n_bytes = self.data.shape
        values = torch.empty(n_rows, n_bytes // type.n_bytes * type.n_values, dtype=dtype)
        for rows, to in zip(torch.split(self.data, _ROWS), torch.split(values, _ROWS), strict=True):
            to.copy_(kernels.dequantize(type, rows))
        return values


def dequantize_by_gguf(type: str, rows: torch.Tensor) -> torch.Tensor:
    """The values (…, in) float32 of `rows` (…, bytes) uint8 in any type that the gguf package knows."""
    from gguf import GGMLQuantizationType, quants

    return torch.from_numpy(quants.dequantize(rows.numpy(), GGMLQuantizationType[type]))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was looked at and not yet loaded.

    `tensors` has exactly the canonical names and shapes of `config`. `read` gives one of them in
    canonical row order, and `read_blocks` does so without turning quantized blocks into numbers; only
    formats that have such blocks bring it. `stop_ids` end an answer, as the files say it; `chat_templates`
    are Jinja's, by their names, `default` the one without. `license` is what the file says of
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
    chat_templates: Mapping[str, str]
    license: str = ""
    note: str = ""
    read_blocks: Callable[[str], Blocks] | None = None
    quant: str | None = None

    @property
    def chat_template(self) -> str | None:
        """The chat template that is for all conversations, None where there is none."""
        return self.chat_templates.get("default")

    @property
    def n_bytes(self) -> int:
        """Bytes of weights on disk."""
        return sum(tensor.n_bytes for tensor in self.tensors.values())

    def find_requantized(self, quant: str) -> str:
        """The quantized types of matrices here that `quant` would round once more, empty for none."""
        return ", ".join(sorted(self.list_quantized() - {quant.upper()})) if quant != "none" else ""

    def list_quantized(self) -> set[str]:
        """The types in which matrices here are quantized, by GGUF's names."""
        types = {tensor.dtype for tensor in self.tensors.values() if len(tensor.shape) == 2}
        return types - _NUMBERS if self.read_blocks else set()

    def list_unknown(self) -> set[str]:
        """Those of them that the kernels do not know, which are held as Q8_0."""
        return self.list_quantized() - set(BlockType.__members__)


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
