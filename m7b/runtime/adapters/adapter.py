"""A low-rank adapter that was looked at and not yet loaded, and the check that it fits its model."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from torch import Tensor

from m7b.errors import DamagedCheckpoint, UnsupportedCheckpoint
from m7b.runtime.checkpoints import StoredTensor
from m7b.runtime.model.config import ModelConfig


class AdapterFormat(StrEnum):
    """How an adapter is laid out on disk."""

    PEFT = "peft"
    GGUF = "gguf"


@dataclass(frozen=True, slots=True)
class LowRank:
    """What is added to one weight (out, in): `scale` times `up` (out, R) times `down` (R, in)."""

    down: StoredTensor
    up: StoredTensor
    scale: float

    @property
    def rank(self) -> int:
        """R."""
        return self.down.shape[0]


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter whose shapes fit a model.

    `parts` are keyed by the canonical names of the weights, and `read_stored` reads a tensor of theirs, rows
    of `up` in canonical order. `base` is the model that it was trained on, as far as it says.
    """

    path: Path
    format: AdapterFormat
    parts: Mapping[str, LowRank]
    read_stored: Callable[[str, StoredTensor], Tensor]
    base: str = ""

    @property
    def n_bytes(self) -> int:
        """Bytes on disk."""
        return sum(part.down.n_bytes + part.up.n_bytes for part in self.parts.values())

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of its parts, the least first."""
        return tuple(sorted({part.rank for part in self.parts.values()}))

    def read(self, name: str) -> tuple[Tensor, Tensor]:
        """`down` and `up` of the weight called `name`, float32.

        Raises:
            DamagedCheckpoint: one of them holds something that is no finite number.
        """
        part = self.parts[name]
        down, up = (self.read_stored(name, each).to(torch.float32) for each in (part.down, part.up))
        for stored, values in ((part.down, down), (part.up, up)):
            if not values.isfinite().all():
                raise DamagedCheckpoint(
                    f"{stored.file}: {stored.source_name} holds values that are not finite",
                    hint="it was trained or converted badly: fetch or make it again",
                )
        return down, up

    def compute_difference(self, name: str) -> Tensor:
        """All that is added to the weight called `name`, (out, in) float32."""
        down, up = self.read(name)
        return self.parts[name].scale * (up @ down)


@dataclass(frozen=True, slots=True)
class Weighted:
    """An adapter, and the share of it that is added."""

    adapter: Adapter
    scale: float


Mix = Sequence[Weighted]
"""Adapters that are added together."""


def list_adaptable(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The weights that can be adapted, with their shapes: the linears of the layers, by canonical names."""
    shapes = config.tensor_shapes()
    return {name: shape for name, shape in shapes.items() if name.startswith("layers.") and len(shape) == 2}


Locate = Callable[[str], tuple[str, str] | None]
"""From a tensor's name in its file to the canonical name of its weight, and `down` or `up`; None for none."""


def gather_pairs(
    path: Path,
    stored: Mapping[str, StoredTensor],
    config: ModelConfig,
    locate: Locate,
    foreign: Mapping[str, str],
) -> dict[str, tuple[StoredTensor, StoredTensor]]:
    """`down` and `up` of each weight by its canonical name.

    `foreign` has what adapters may hold besides, by words in the names of tensors.

    Raises:
        DamagedCheckpoint: one lacks its other half, or belongs to no linear of the model.
        UnsupportedCheckpoint: a tensor is of a kind that is not read.
    """
    found: dict[str, dict[str, StoredTensor]] = {}
    for source_name, tensor in stored.items():
        place = locate(source_name)
        if place is None:
            raise _make_foreign_error(tensor, config, foreign)
        name, side = place
        if twin := found.setdefault(name, {}).get(side):
            raise DamagedCheckpoint(f"{tensor.file}: {source_name} is the same as {twin.source_name}")
        found[name][side] = tensor
    for sides in found.values():
        if len(sides) == 1:
            (tensor,) = sides.values()
            raise DamagedCheckpoint(
                f"{tensor.file}: {tensor.source_name} lacks its other half", hint="fetch the adapter again"
            )
    if not found:
        raise DamagedCheckpoint(f"{path}: an adapter without tensors", hint="fetch it again")
    return {name: (sides["down"], sides["up"]) for name, sides in found.items()}


def check_part(
    part: LowRank, shape: tuple[int, ...], dtypes: Iterable[str], rank: int | None = None
) -> LowRank:
    """See that `part` fits a weight of `shape`, and is of the `rank` that a configuration gives.

    Raises:
        DamagedCheckpoint: it does not.
        UnsupportedCheckpoint: it is of a dtype not in `dtypes`.
    """
    wanted = rank if rank is not None else part.down.shape[0] if part.down.shape else 0
    for stored, right in ((part.down, (wanted, shape[1])), (part.up, (shape[0], wanted))):
        if stored.shape != right or wanted < 1:
            raise DamagedCheckpoint(
                f"{stored.file}: {stored.source_name} is {_dims(stored.shape)}, "
                f"and {_dims(right)} belong to this model and rank",
                hint="take the adapter of this model, or the model of this adapter",
            )
        if stored.dtype not in dtypes:
            raise UnsupportedCheckpoint(
                f"{stored.file}: {stored.source_name} is stored as {stored.dtype}",
                hint=f"m7b reads {', '.join(dtypes)}",
            )
    return part


def _make_foreign_error(
    tensor: StoredTensor, config: ModelConfig, foreign: Mapping[str, str]
) -> DamagedCheckpoint | UnsupportedCheckpoint:
    name = tensor.source_name
    if what := next((what for word, what in foreign.items() if f".{word}" in f".{name}"), None):
        return UnsupportedCheckpoint(
            f"{tensor.file}: {name} {what}",
            hint="m7b adds low-rank weights to linears of layers; merge it into its base model with peft",
        )
    return DamagedCheckpoint(
        f"{tensor.file}: {name} belongs to no linear of this model of {config.n_layers} layers",
        hint="take the adapter of this model, or the model of this adapter",
    )


def _dims(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"
