"""Choosing the next token: pure filters over logits (V,), and the Sampler that chains them in float64.

Filters return logits with -inf for what is ruled out. Their order is that of transformers'
`generate`: bias, penalties, temperature, top-k, top-p, min-p, typical-p.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from m7b.errors import DamagedCheckpoint, UsageError
from m7b.generation import SamplingParams, TokenLogprob


def penalize_repetition(logits: Tensor, counts: Tensor, penalty: float) -> Tensor:
    """Divide positive and multiply negative logits of seen tokens by `penalty` (CTRL, arXiv 1909.05858)."""
    penalized = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(counts > 0, penalized, logits)


def penalize_presence_and_frequency(
    logits: Tensor, counts: Tensor, presence: float, frequency: float
) -> Tensor:
    """Subtract `presence` once and `frequency` per occurrence from each seen token (OpenAI's definition)."""
    counts = counts.to(logits.dtype)  # a number times an integer tensor would be rounded to float32
    return logits - presence * (counts > 0).to(logits.dtype) - frequency * counts


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Divide by `temperature`, after moving the largest logit to 0 so that no division overflows."""
    return (logits - logits.max()) / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the `k` largest logits and what ties with the last of them."""
    kth = logits.topk(min(k, logits.numel())).values[-1]
    return logits.masked_fill(logits < kth, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Drop each token whose more likely ones already hold more than `p`: the one that crosses p stays.

    Of tokens that are equally likely, lower ids come first.
    """
    probs = logits.softmax(-1)
    for n in (256, 4096, probs.numel()):  # nearly always a few tokens hold p, and sorting all takes long
        likeliest = probs.topk(min(n, probs.numel())).values
        before = likeliest.cumsum(-1) - likeliest
        if before[-1] > p:
            break
    n_kept = int((before <= p).sum())
    last = likeliest[n_kept - 1]
    tied = (probs == last).nonzero().squeeze(-1)[: n_kept - int((likeliest > last).sum())]
    return logits.masked_fill((probs <= last).index_fill(0, tied, False), -math.inf)


def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Drop tokens less likely than `min_p` times the most likely one."""
    return logits.masked_fill(logits < logits.max() + math.log(min_p), -math.inf)


def keep_typical(logits: Tensor, mass: float) -> Tensor:
    """Keep the tokens whose surprise lies closest to the entropy, up to `mass` (arXiv 2202.00666)."""
    log_probs = logits.log_softmax(-1)
    probs = log_probs.exp()
    entropy = -(probs * log_probs).nansum()  # 0 * -inf counts as 0
    distance = (-log_probs - entropy).abs()
    order = distance.argsort(stable=True)
    n_before = int((probs[order].cumsum(-1) < mass).sum())
    limit = distance[order[min(n_before, logits.numel() - 1)]]
    return logits.masked_fill(distance > limit, -math.inf)


def argmax(logits: Tensor) -> int:
    """The most likely token, the lowest id on a tie."""
    return int(np.argmax(logits.numpy()))


def draw(shares: Tensor, noise: Tensor) -> Tensor:
    """The ids (…) that exponentially distributed `noise` (…, V) draws from probabilities of that shape.

    It is how torch.multinomial draws one, so that noise from elsewhere draws the same. Of no probability is
    none drawn.
    """
    return (shares / noise).argmax(-1)


def describe_damage() -> DamagedCheckpoint:
    """Why nothing can be chosen where logits are not numbers."""
    return DamagedCheckpoint(
        "the model computed logits that are not numbers",
        hint="verify the checkpoint, or try --dtype float32",
    )


def describe_full_ban() -> UsageError:
    """Why nothing can be chosen where the bias forbids all."""
    return UsageError("logit_bias rules out every token", hint="leave at least one")


@dataclass(frozen=True, slots=True)
class Wish:
    """What the next token of a sequence is to be chosen by, where others are chosen at the same time.

    `history` holds the ids that penalties look back on, none without penalties. `allowed` has the bits of a
    grammar. `noise` (V,) draws, None for the likeliest token.
    """

    params: SamplingParams
    history: Sequence[int]
    allowed: bytes | None
    noise: Tensor | None


class Sampler:
    """Chooses tokens for one answer. Owns its generator: the same seed gives the same choices.

    Args:
        params: what to filter by.
        prompt: the ids before the answer, which the penalties look back on.
        vocab_size: V.

    Raises:
        UsageError: `logit_bias` names an id outside the vocabulary.
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int], vocab_size: int) -> None:
        self._params, self._vocab_size = params, vocab_size
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)
        self._history = list(prompt)
        self._noise: Tensor | None = None
        self._penalizes = (
            params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0
        ) and params.repeat_last_n != 0
        self._bias = torch.zeros(vocab_size, dtype=torch.float64) if params.logit_bias else None
        for token, bias in params.logit_bias.items():
            if not 0 <= token < vocab_size:
                raise UsageError(
                    f"logit_bias names token {token}",
                    hint=f"ids of this model run from 0 to {vocab_size - 1}",
                )
            assert self._bias is not None
            self._bias[token] = bias

    def choose(self, logits: Tensor, allowed: bytes | None = None) -> int:
        """The next token, given the model's logits (V,) on the CPU in float32, of those that are `allowed`.

        Raises:
            DamagedCheckpoint: the logits are not numbers.
            UsageError: the bias leaves no token to choose.
        """
        token = self._draw(self.filter_logits(logits, allowed))
        self.observe(token)
        return token

    def make_wish(self, allowed: bytes | None = None) -> Wish:
        """What `choose` would choose by; asked again before the next `observe`, it is the same."""
        noise = None if self._params.temperature == 0 else self._find_noise()
        return Wish(self._params, self._look_back() if self._penalizes else (), allowed, noise)

    def observe(self, token: int) -> None:
        """Look back on `token` from now on, whoever chose it."""
        self._history.append(token)
        self._noise = None

    def filter_logits(self, logits: Tensor, allowed: bytes | None = None) -> Tensor:
        """The logits after every filter: what `choose` draws from."""
        if not np.isfinite(logits.numpy().sum(dtype=np.float64)):  # which no finite ones add up to
            raise describe_damage()
        params = self._params
        if params.temperature == 0 and self._bias is None and allowed is None and not self._penalizes:
            return logits
        plain, logits = logits, logits.double()  # in which no setting in range overflows
        if self._bias is not None:
            logits += self._bias
        if allowed is not None:
            others = ~_unpack_bits(allowed, logits.numel())
            logits = logits.masked_fill(others, -math.inf)
            if logits.max() == -math.inf:  # a bias may forbid all that the grammar allows: it gives way
                logits = plain.double().masked_fill(others, -math.inf)
        if self._bias is not None and logits.max() == -math.inf:
            raise describe_full_ban()
        if self._penalizes:
            logits = self._penalize(logits)
        if params.temperature == 0:
            return logits
        logits = apply_temperature(logits, params.temperature)
        if params.top_k:
            logits = keep_top_k(logits, params.top_k)
        if params.top_p < 1:
            logits = keep_top_p(logits, params.top_p)
        if params.min_p > 0:
            logits = keep_min_p(logits, params.min_p)
        if params.typical_p < 1:
            logits = keep_typical(logits, params.typical_p)
        return logits

    def _penalize(self, logits: Tensor) -> Tensor:
        params = self._params
        counts = torch.tensor(self._look_back(), dtype=torch.int64).bincount(minlength=logits.numel())
        logits = penalize_repetition(logits, counts, params.repetition_penalty)
        return penalize_presence_and_frequency(
            logits, counts, params.presence_penalty, params.frequency_penalty
        )

    def _draw(self, logits: Tensor) -> int:
        if self._params.temperature == 0:
            return argmax(logits)
        return int(draw(logits.softmax(-1), self._find_noise()))

    def _look_back(self) -> list[int]:
        """The ids that penalties are for."""
        last_n = self._params.repeat_last_n
        return self._history[-(len(self._history) if last_n < 0 else last_n) :]

    def _find_noise(self) -> Tensor:
        """The noise that draws the next token."""
        if self._noise is None:
            empty = torch.empty(self._vocab_size, dtype=torch.float64)
            self._noise = empty.exponential_(generator=self._generator)
        return self._noise


def _unpack_bits(allowed: bytes, vocab_size: int) -> Tensor:
    """Which ids are allowed, (V,) bool; those beyond the bits are not."""
    bits = np.unpackbits(np.frombuffer(allowed, np.uint8), bitorder="little", count=vocab_size)
    return torch.from_numpy(bits).bool()


def compute_logprob(logits: Tensor, token: int, top: int) -> TokenLogprob:
    """The log-probability of `token` under `logits` (V,), and the `top` most likely alternatives."""
    log_probs = logits.log_softmax(-1)
    values, ids = log_probs.topk(min(top, logits.numel()))
    return TokenLogprob(
        token, float(log_probs[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True))
    )
