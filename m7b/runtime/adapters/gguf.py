"""Adapters as llama.cpp converts them: one GGUF file of the type `adapter`."""

import math
import re
from pathlib import Path

from torch import Tensor

from m7b.errors import UnsupportedCheckpoint
from m7b.runtime.adapters.adapter import (
    Adapter,
    AdapterFormat,
    LowRank,
    check_part,
    gather_pairs,
    list_adaptable,
)
from m7b.runtime.checkpoints import StoredTensor, gguf
from m7b.runtime.checkpoints.checkpoint import translate_name
from m7b.runtime.checkpoints.fields import Fields
from m7b.runtime.checkpoints.gguf_parts import read_parts
from m7b.runtime.model.config import ModelConfig
from m7b.runtime.model.rope import canonical_rows

_TENSOR = re.compile(r"(?P<weight>.+)\.lora_(?P<side>[ab])")
_ALPHA = "adapter.lora.alpha"
_INVOCATION = "adapter.alora.invocation_tokens"
_FOREIGN = {"token_embd": "belongs to the embedding", "output.weight": "belongs to the output"}


def sniff(path: Path) -> bool:
    """Whether `path` is a GGUF file, of an adapter or of something else."""
    return gguf.sniff(path)


def open_adapter(path: Path, config: ModelConfig) -> Adapter:
    """Read the metadata and the tensor headers of the file at `path`, for a model of `config`.

    Raises:
        DamagedCheckpoint: the file is cut short, or contradicts itself or the model.
        UnsupportedCheckpoint: it is no low-rank adapter, or of another architecture.
    """
    files = read_parts(path)
    fields = Fields(path, files[0][1].metadata)
    _check_kind(fields)
    places = {tensor.source_name: (tensor, at) for file in files for tensor, at in gguf.list_tensors(*file)}
    gguf.refuse_overlap(places.values())
    names = {translate_name(name, gguf.NAMES): name for name in list_adaptable(config)}

    def locate(source_name: str) -> tuple[str, str] | None:
        match = _TENSOR.fullmatch(source_name)
        name = names.get(match["weight"]) if match else None
        return (name, "down" if match["side"] == "a" else "up") if match and name else None

    stored = {name: tensor for name, (tensor, _) in places.items()}
    pairs = gather_pairs(path, stored, config, locate, _FOREIGN)
    alpha = _read_alpha(fields)
    parts = {name: _make_part(name, *pair, alpha, config) for name, pair in pairs.items()}

    def read(name: str, tensor: StoredTensor) -> Tensor:
        values = gguf.read_numbers(*places[tensor.source_name])
        return canonical_rows(name, values, config) if tensor is parts[name].up else values

    base = fields.raw("general.base_model.0.name")
    return Adapter(path, AdapterFormat.GGUF, parts, read, base if isinstance(base, str) else "")


def _make_part(name: str, down: StoredTensor, up: StoredTensor, alpha: float, config: ModelConfig) -> LowRank:
    rank = down.shape[0]
    # Like llama.cpp, which takes an alpha of 0 for one that is not given.
    part = LowRank(down, up, alpha / rank if alpha and rank else 1.0)
    return check_part(part, list_adaptable(config)[name], gguf.DTYPES)


def _check_kind(fields: Fields) -> None:
    kind, method = fields.raw("general.type"), fields.raw("adapter.type")
    architecture = fields.raw("general.architecture")
    if kind != "adapter":
        raise UnsupportedCheckpoint(
            f"{fields.file}: a GGUF file of {str(kind or 'a model')[:60]}, not an adapter",
            hint="--adapter takes what goes on top of a model, -m the model itself",
        )
    if method != "lora":
        raise UnsupportedCheckpoint(
            f"{fields.file}: adapter.type is {str(method)[:60]!r}", hint="m7b reads adapters of the type lora"
        )
    if architecture not in gguf.ARCHITECTURES:
        raise UnsupportedCheckpoint(
            f"{fields.file}: general.architecture is {str(architecture)[:60]!r}",
            hint=f"m7b runs {' and '.join(map(repr, gguf.ARCHITECTURES))}",
        )
    if fields.raw(_INVOCATION):
        raise UnsupportedCheckpoint(
            f"{fields.file}: {_INVOCATION} asks for activation by tokens (aLoRA)",
            hint="m7b adds an adapter to every token",
        )


def _read_alpha(fields: Fields) -> float:
    alpha = fields.raw(_ALPHA)
    if alpha is None:
        return 0.0
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha) or alpha < 0:
        raise fields.bad(_ALPHA, "a number of at least 0")
    return float(alpha)
