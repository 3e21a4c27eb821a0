"""How well a model foretells a text, and how far another one is from it. Knows ids; knows no text.

A text longer than the context is read in windows that overlap: each token is judged once, with at
least `ctx_size - stride` tokens before it, but for those of the first window.
"""

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from m7b.runtime.engine import Engine


@dataclass(frozen=True, slots=True)
class Window:
    """The ids [start, end), of which those from `first` on are judged."""

    start: int
    end: int
    first: int


@dataclass(frozen=True, slots=True)
class Perplexity:
    """exp of the mean negative log-likelihood of `n_tokens`, and the standard error of that estimate."""

    value: float
    error: float
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Distance:
    """How far the next-token distributions of a model are from those of another, over the same text.

    `mean_kl` and `p99_kl` are of the Kullback-Leibler divergence in nats, `top1_agreement` is the share of
    places where both hold the same token for the most likely.
    """

    mean_kl: float
    kl_error: float
    p99_kl: float
    top1_agreement: float


def windows(n: int, ctx_size: int, stride: int) -> Iterator[Window]:
    """The windows over `n` ids. 10 ids, context 6, stride 2: [0, 6), [2, 8), [4, 10), judged from 1, 6 and 8.

    The first id has nothing before it and is not judged. `stride` is less than `ctx_size`.
    """
    judged = 1
    for start in range(0, n, stride):
        end = min(start + ctx_size, n)
        yield Window(start, end, judged)
        judged = end
        if end == n:
            return


def distributions(
    engine: Engine, ids: Sequence[int], ctx_size: int, stride: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each judged id of `ids`, in chunks: the log-probabilities (T, V) of what is next, and it (T,)."""
    for window in windows(len(ids), ctx_size, stride):
        at = window.start + 1  # the position that the next row foretells
        for rows in engine.logits(ids[window.start : window.end - 1]):
            end = at + len(rows)
            first = max(at, window.first)
            if first < end:
                yield rows[first - at :].log_softmax(-1), torch.tensor(ids[first:end])
            at = end


def _compute_losses(log_probs: Tensor, targets: Tensor) -> list[float]:
    """The negative log-likelihood of each of `targets` (T,) under `log_probs` (T, V)."""
    found: list[float] = (-log_probs.gather(1, targets[:, None])[:, 0]).tolist()
    return found


def perplexity(losses: Sequence[float]) -> Perplexity:
    """From the negative log-likelihood of each token."""
    values = np.asarray(losses, dtype=np.float64)
    value = math.exp(values.mean())
    return Perplexity(value, value * float(values.std(ddof=1)) / math.sqrt(len(values)), len(values))


def losses(
    engine: Engine, ids: Sequence[int], ctx_size: int, stride: int
) -> Generator[int, None, list[float]]:
    """The negative log-likelihood of each judged id; tells how many are done."""
    found: list[float] = []
    for log_probs, targets in distributions(engine, ids, ctx_size, stride):
        found += _compute_losses(log_probs, targets)
        yield len(found)
    return found


class Record:
    """The distributions of one model over a text, kept in a file, to compare another with.

    Args:
        file: holds 4 bytes for each token of the text and each of the vocabulary.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._losses: list[float] = []
        self._vocab_size = 0

    @property
    def losses(self) -> list[float]:
        """The negative log-likelihood of each judged id."""
        return self._losses

    def take(
        self, engine: Engine, ids: Sequence[int], ctx_size: int, stride: int
    ) -> Generator[int, None, None]:
        """Record what `engine` holds of `ids`; tells how many are done."""
        with self._file.open("wb") as file:
            for log_probs, targets in distributions(engine, ids, ctx_size, stride):
                self._vocab_size = log_probs.shape[1]
                self._losses += _compute_losses(log_probs, targets)
                file.write(log_probs.numpy().tobytes())
                yield len(self._losses)

    def compare(
        self, engine: Engine, ids: Sequence[int], ctx_size: int, stride: int
    ) -> Generator[int, None, tuple[list[float], Distance]]:
        """The losses of another `engine` and its distance from what was recorded; tells how many are done."""
        shape = (len(self._losses), self._vocab_size)
        recorded = np.memmap(self._file, dtype=np.float32, mode="r", shape=shape)
        found: list[float] = []
        divergences: list[float] = []
        n_same = 0
        for log_probs, targets in distributions(engine, ids, ctx_size, stride):
            exact = torch.from_numpy(recorded[len(found) : len(found) + len(targets)].copy())  # (T, V)
            found += _compute_losses(log_probs, targets)
            wide = exact.to(torch.float64)
            divergences += (wide.exp() * (wide - log_probs.to(torch.float64))).sum(-1).tolist()
            n_same += int((exact.argmax(-1) == log_probs.argmax(-1)).sum())
            yield len(found)
        kl = np.asarray(divergences)
        distance = Distance(
            mean_kl=float(kl.mean()),
            kl_error=float(kl.std(ddof=1)) / math.sqrt(len(kl)),
            p99_kl=float(np.quantile(kl, 0.99)),
            top1_agreement=n_same / len(kl),
        )
        return found, distance
