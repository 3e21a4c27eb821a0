"""Choosing the next tokens of many sequences at once, where their logits are; a few numbers come back.

The filters are those of sampling.py, over rows (B, V), and nothing in them waits for the device. A filter
that one sequence wants runs over all rows, and leaves those alone whose setting is neutral.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from m7b.errors import M7bError
from m7b.generation import SamplingParams, TokenLogprob
from m7b.runtime.engine.sampling import Wish, describe_damage, describe_full_ban, draw

_ABOVE_ALL = 2.0  # a share that no sum of probabilities reaches


@dataclass(frozen=True, slots=True)
class Chosen:
    """The token that was chosen for a wish, and its log-probability where that was wanted."""

    token: int
    logprob: TokenLogprob | None


@torch.inference_mode()
def choose_together(logits: Tensor, wishes: Sequence[Wish]) -> list[Chosen | M7bError]:
    """What each of `wishes` comes to under its row of `logits` (B, V) float32, or why it comes to nothing."""
    is_number = logits.sum(-1, dtype=torch.float64).isfinite()
    filtered = _filter_before_temperature(logits, wishes)
    is_possible = filtered.amax(-1) > -math.inf
    tokens = filtered.argmax(-1)  # the lowest id on a tie
    if any(wish.noise is not None for wish in wishes):
        is_drawn = _send([wish.noise is not None for wish in wishes], logits.device)
        shares = _filter_by_likelihood(filtered.double(), wishes).softmax(-1)
        tokens = torch.where(is_drawn, draw(shares, _stack_noise(wishes, logits)), tokens)
    tops = [wish.params.logprobs for wish in wishes]
    parts = [tokens[:, None], is_number[:, None], is_possible[:, None]]
    if any(top is not None for top in tops):
        log_probs = logits.log_softmax(-1)
        best = log_probs.topk(min(max(top or 0 for top in tops), logits.shape[-1]))
        parts += [log_probs.gather(-1, tokens[:, None]), best.values, best.indices]
    found = torch.cat([part.double() for part in parts], -1).tolist()  # ids are whole in 53 bits
    return [_read(row, wish) for row, wish in zip(found, wishes, strict=True)]


def _read(row: Sequence[float], wish: Wish) -> Chosen | M7bError:
    """What a row of results says."""
    token, is_number, is_possible, *told = row
    if not is_number:
        return describe_damage()
    if not is_possible:
        return describe_full_ban()
    top = wish.params.logprobs
    if top is None:
        return Chosen(int(token), None)
    n_told = (len(told) - 1) // 2
    values, ids = told[1 : 1 + n_told][:top], told[1 + n_told :][:top]
    best = tuple(zip(map(int, ids), values, strict=True))
    return Chosen(int(token), TokenLogprob(int(token), told[0], best))


def _filter_before_temperature(logits: Tensor, wishes: Sequence[Wish]) -> Tensor:
    """The logits after bias, grammar and penalties: float32 as given where nobody wants any, else float64."""
    wide = logits
    if any(wish.params.logit_bias for wish in wishes):
        wide = wide.double().index_put(*_list_biases(wishes, logits.device), accumulate=True)
    if any(wish.allowed is not None for wish in wishes):
        others = ~_unpack_masks(wishes, logits)
        biased = wide.double().masked_fill(others, -math.inf)
        is_banned = biased.amax(-1, keepdim=True) == -math.inf  # the bias gives way to the grammar
        wide = torch.where(is_banned, logits.double().masked_fill(others, -math.inf), biased)
    return _penalize(wide.double(), wishes) if any(wish.history for wish in wishes) else wide


def _filter_by_likelihood(logits: Tensor, wishes: Sequence[Wish]) -> Tensor:
    """The logits (B, V) after temperature and the filters behind it."""

    def column(value: Callable[[SamplingParams], float]) -> Tensor:
        return _column(wishes, lambda wish: value(wish.params), logits.device)

    logits = (logits - logits.amax(-1, keepdim=True)) / column(lambda params: params.temperature or 1.0)
    each = [wish.params for wish in wishes]
    if any(params.top_k for params in each):
        most = min(max(params.top_k for params in each), logits.shape[-1])
        counts = column(lambda params: min(params.top_k, most))  # 0: all of them
        kth = logits.topk(most).values.gather(-1, (counts.long() - 1).clamp(min=0))
        logits = logits.masked_fill((logits < kth) & (counts > 0), -math.inf)
    if any(params.top_p < 1 for params in each):
        logits = _keep_top_p(logits, column(lambda params: params.top_p if params.top_p < 1 else _ABOVE_ALL))
    if any(params.min_p > 0 for params in each):
        least = column(lambda params: math.log(params.min_p) if params.min_p > 0 else -math.inf)
        logits = logits.masked_fill(logits < logits.amax(-1, keepdim=True) + least, -math.inf)
    if any(params.typical_p < 1 for params in each):
        mass = column(lambda params: params.typical_p if params.typical_p < 1 else _ABOVE_ALL)
        logits = _keep_typical(logits, mass)
    return logits


def _keep_top_p(logits: Tensor, p: Tensor) -> Tensor:
    """As `sampling.keep_top_p`, `p` (B, 1)."""
    likeliest, order = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
    before = likeliest.cumsum(-1) - likeliest
    n_kept = (before <= p).sum(-1, keepdim=True)
    is_late = torch.arange(logits.shape[-1], device=logits.device) >= n_kept  # (B, V) in their order
    return logits.masked_fill(torch.empty_like(is_late).scatter_(-1, order, is_late), -math.inf)


def _keep_typical(logits: Tensor, mass: Tensor) -> Tensor:
    """As `sampling.keep_typical`, `mass` (B, 1)."""
    log_probs = logits.log_softmax(-1)
    probs = log_probs.exp()
    entropy = -(probs * log_probs).nansum(-1, keepdim=True)  # 0 * -inf counts as 0
    distance = (-log_probs - entropy).abs()
    sorted_distance, order = distance.sort(dim=-1, stable=True)
    n_before = (probs.gather(-1, order).cumsum(-1) < mass).sum(-1, keepdim=True)
    limit = sorted_distance.gather(-1, n_before.clamp(max=logits.shape[-1] - 1))
    return logits.masked_fill(distance > limit, -math.inf)


def _penalize(logits: Tensor, wishes: Sequence[Wish]) -> Tensor:
    """As the penalties of sampling.py, each row by its own."""
    device = logits.device
    rows = [row for row, wish in enumerate(wishes) for _ in wish.history]
    ids = [token for wish in wishes for token in wish.history]
    counts = torch.zeros_like(logits).index_put(
        (_send(rows, device), _send(ids, device)), logits.new_ones(()), accumulate=True
    )
    penalty = _column(wishes, lambda wish: wish.params.repetition_penalty, device)
    penalized = torch.where(logits > 0, logits / penalty, logits * penalty)
    logits = torch.where(counts > 0, penalized, logits)
    presence = _column(wishes, lambda wish: wish.params.presence_penalty, device)
    frequency = _column(wishes, lambda wish: wish.params.frequency_penalty, device)
    return logits - presence * (counts > 0).double() - frequency * counts


def _list_biases(wishes: Sequence[Wish], device: torch.device) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Where biases are added, and how much."""
    biases = [(row, *each) for row, wish in enumerate(wishes) for each in wish.params.logit_bias.items()]
    rows, ids, values = zip(*biases, strict=True)
    return (_send(rows, device), _send(ids, device)), _send(list(map(float, values)), device)


def _unpack_masks(wishes: Sequence[Wish], logits: Tensor) -> Tensor:
    """Which ids are allowed, (B, V) bool; without a grammar all, and of those beyond its bits none."""
    n_bytes = -(-logits.shape[-1] // 8)
    packed = np.full((len(wishes), n_bytes), 0xFF, np.uint8)
    for row, wish in enumerate(wishes):
        if wish.allowed is not None:
            bits = np.frombuffer(wish.allowed, np.uint8)[:n_bytes]
            packed[row] = 0
            packed[row, : len(bits)] = bits
    places = torch.arange(8, dtype=torch.uint8, device=logits.device)
    bits_of = (_send(packed, logits.device)[..., None] >> places) & 1  # (B, bytes, 8)
    return bits_of.flatten(-2)[:, : logits.shape[-1]].bool()


def _stack_noise(wishes: Sequence[Wish], logits: Tensor) -> Tensor:
    """The noise of each wish, (B, V) float64, and ones where there is none."""
    rows = np.ones((len(wishes), logits.shape[-1]))
    for row, wish in zip(rows, wishes, strict=True):
        if wish.noise is not None:
            row[:] = wish.noise.numpy()
    return _send(rows, logits.device)


def _column(wishes: Sequence[Wish], value: Callable[[Wish], float], device: torch.device) -> Tensor:
    """A number of each wish, (B, 1) float64."""
    return _send([float(value(wish)) for wish in wishes], device)[:, None]


def _send(values: Sequence[float] | np.ndarray, device: torch.device) -> Tensor:
    """A tensor of `values` on `device`, which nobody waits for."""
    kind = torch.float64 if isinstance(values, Sequence) and isinstance(values[0], float) else None
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else torch.tensor(values, dtype=kind)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
