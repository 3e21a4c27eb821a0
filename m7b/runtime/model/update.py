"""What is added to linears for some of a batch's tokens. Knows tensors; knows no files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from m7b.runtime.model.batch import Span


@dataclass(frozen=True, slots=True)
class Update:
    """A low-rank addition to a linear: `down` (R, in) makes R numbers of x, `up` (R, out) makes y of them.

    In between, each is multiplied by its one of `scales` (R,) float32: several adapters are one, of all their
    ranks.
    """

    down: Tensor
    up: Tensor
    scales: Tensor


Updates = Mapping[nn.Module, Update]
"""Those of one mix of adapters, by their linears."""


@dataclass(frozen=True, slots=True)
class Part:
    """The tokens [first, end) of a batch, which have the updates of the mix `adapter`."""

    first: int
    end: int
    adapter: int


def list_parts(spans: Sequence[Span]) -> Iterator[Part]:
    """The parts of a batch: spans that follow each other with one adapter are one part."""
    at, part = 0, None
    for span in spans:
        first, at = at, at + span.n
        if part and part.adapter == span.adapter:
            first = part.first
        elif part:
            yield part
        part = Part(first, at, span.adapter)
    if part:
        yield part


def add_update(x: Tensor, y: Tensor, update: Update) -> None:
    """Add to `y` (N, out) what `update` makes of `x` (N, in)."""
    low = F.linear(x, update.down) * update.scales.to(x.dtype)  # (N, R)
    y += low @ update.up
