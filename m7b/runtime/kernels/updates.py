"""What adapters add to linears, as the kernels read it. Calls nothing."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

RANK_STEP = 16
"""Ranks of updates are multiples of it, filled up with zeros: vectors are read whole."""


class UpdateArrays(NamedTuple):
    """An addition to a weight (out, in): `down` (R, in) and `up` (R, out) bfloat16, `scales` (R,) float32."""

    down: Tensor
    up: Tensor
    scales: Tensor

    def numbers(self) -> tuple[int, ...]:
        """The struct `Update` of updates.h."""
        return *(part.data_ptr() for part in self), self.down.shape[0]


_NO_UPDATE = (0, 0, 0, 0)


class LayerUpdateArrays(NamedTuple):
    """What a mix of adapters adds to the weights of one layer."""

    wq: UpdateArrays | None
    wk: UpdateArrays | None
    wv: UpdateArrays | None
    wo: UpdateArrays | None
    w1: UpdateArrays | None
    w2: UpdateArrays | None
    w3: UpdateArrays | None

    def numbers(self) -> Iterator[int]:
        """The struct `LayerUpdates` of layers.h."""
        for update in self:
            yield from update.numbers() if update else _NO_UPDATE


class ModelUpdates:
    """What a mix of adapters adds to the weights of all layers."""

    def __init__(self, layers: Sequence[LayerUpdateArrays]) -> None:
        self._layers = layers  # kept, for their addresses are
        self._numbers = array("q", [number for layer in layers for number in layer.numbers()])

    @property
    def address(self) -> int:
        """Where the array of struct `LayerUpdates` begins."""
        return self._numbers.buffer_info()[0]


class UpdatedTokens(NamedTuple):
    """The tokens [first, end) of a batch, for which `updates` are added."""

    updates: ModelUpdates
    first: int
    end: int


class UpdatedParts:
    """Those of a batch for which something is added, as the kernels read them."""

    def __init__(self, parts: Iterable[UpdatedTokens]) -> None:
        self._parts = tuple(parts)  # kept, for their addresses are
        self._numbers = array("q")
        for updates, first, end in self._parts:
            self._numbers.extend((updates.address, first, end - first))  # struct Part

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def address(self) -> int:
        """Where the array of struct `Part` of layers.h begins."""
        return self._numbers.buffer_info()[0]
