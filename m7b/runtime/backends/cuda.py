"""Decoding on an accelerator: one pass of fixed shapes, captured as a CUDA graph and replayed.

The pass reads the first B rows of a static cache, up to slot S of each: B and S are the least powers of two
that hold all who decode. Which rows take part, and where they are, is data: tokens and positions on the
device. So nothing in the pass waits for the processor, and one graph serves until a longer text needs more
slots.

On other devices the same pass runs uncaptured, which is how it is compared with the dynamic one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m7b.runtime.cache import RollingKVCache
from m7b.runtime.model.batch import Batch
from m7b.runtime.model.rope import rotation
from m7b.runtime.model.transformer import Transformer
from m7b.runtime.static_cache import StaticCache

_ABSENT = -1  # the position of a row that takes no part
_LEAST_SLOTS = 256  # what a pass reads at least: shorter ones gain nothing, and each is a graph more
_N_WARM_UPS = 2  # passes before a capture, in which libraries choose their kernels


class StaticTransformer:
    """A model that decodes by static passes, and reads prompts by dynamic ones.

    Args:
        model: loaded, all of it on one device.
    """

    def __init__(self, model: Transformer) -> None:
        self._model = model
        self._passes: dict[tuple[int, int], StaticPass] = {}
        self._version = 0

    def __call__(self, batch: Batch, cache: RollingKVCache) -> Tensor:
        """The wanted logits of `batch`, (M, V) float32. Keys and values go to their rows of `cache`."""
        if not isinstance(cache, StaticCache):
            return self._model(batch, cache)
        decoding = [span.n == 1 and not span.is_prompt for span in batch.spans]
        if all(decoding):
            return self._decode(batch, cache)
        if not any(decoding):
            return self._model(batch, cache)
        logits = torch.empty(len(batch.wanted), self._model.config.vocab_size, device=batch.tokens.device)
        for forward, is_static in ((self._decode, True), (self._model, False)):
            part, places = _select(batch, [each is is_static for each in decoding])
            logits[places] = forward(part, cache)
        return logits

    def _decode(self, batch: Batch, cache: StaticCache) -> Tensor:
        """As a call, where each span is one token of an answer."""
        places = [cache.places[span.row] for span in batch.spans]
        step = self._find_pass(cache, 1 + max(places), max(span.end for span in batch.spans))
        at = torch.tensor(places, device=batch.tokens.device)
        if len(self._model.adapters) > 1:
            step.adapters[at] = torch.tensor([span.adapter for span in batch.spans], device=at.device)
        return step.run(batch.tokens, batch.positions, at)[at[batch.wanted]]

    def _find_pass(self, cache: StaticCache, n_rows: int, n_slots: int) -> "StaticPass":
        """The smallest pass over so many rows and slots."""
        if self._version != cache.version:
            self._passes, self._version = {}, cache.version
        size = (
            min(_round_up(n_rows), cache.n_rows),
            min(_round_up(max(n_slots, _LEAST_SLOTS)), cache.n_slots),
        )
        if size not in self._passes:
            pool = next((each.pool for each in self._passes.values()), None)
            self._passes[size] = StaticPass(self._model, cache, *size, pool)
        return self._passes[size]


class StaticPass:
    """The pass over the next tokens of the first `n_rows` rows, whose texts fit `n_slots` or have wrapped.

    Args:
        model: loaded.
        cache: whose tensors stay where they are.
        n_rows: B.
        n_slots: S, all of them where a text has wrapped.
        pool: memory of another pass's graph, which this one's may use too: one runs at a time, and what it
            returns is copied before the next.

    Attributes:
        tokens: the next of each row, (B,); `run` sets them.
        positions: where they are, (B,), absent ones `_ABSENT`; `run` sets them.
        adapters: the number of the mix that each row goes through, (B,).
        pool: of its graph, None where there is none.
    """

    def __init__(
        self,
        model: Transformer,
        cache: StaticCache,
        n_rows: int,
        n_slots: int,
        pool: Any = None,
    ) -> None:
        self._model, self._cache, self._n_slots = model, cache, n_slots
        device = cache.keys[0].device
        self.tokens = torch.zeros(n_rows, dtype=torch.int64, device=device)
        self.positions = torch.full((n_rows,), _ABSENT, device=device)
        self.adapters = torch.zeros(n_rows, dtype=torch.int64, device=device)
        self.pool = pool
        self._rows = torch.arange(n_rows, device=device)
        self._slots = torch.arange(n_slots, device=device)
        self._replay = self._capture(device) if device.type == "cuda" else self.compute

    def run(self, tokens: Tensor, positions: Tensor, at: Tensor) -> Tensor:
        """The logits (B, V) float32 where rows `at` (N,) take `tokens` at `positions`; others are void."""
        self.tokens[at] = tokens
        self.positions.fill_(_ABSENT)
        self.positions[at] = positions
        return self._replay()

    def compute(self) -> Tensor:
        """The logits (B, V) float32 for what `tokens` and `positions` hold. Shapes hang on no value."""
        model, cache = self._model, self._cache
        h = model.tok_embeddings(self.tokens)  # (B, dim)
        cos, sin = rotation(self.positions, model.config)
        target = torch.where(self.positions < 0, cache.n_slots, self.positions % cache.capacity)  # (B,)
        bias = self._compute_bias()

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            rings = cache.keys[layer], cache.values[layer]  # (R, K, S + 1, D)
            for ring, new in zip(rings, (keys, values), strict=True):
                ring[self._rows, :, target] = cache.format.encode(new)
            filled, mixed = (
                cache.format.decode(ring[: len(queries), :, : self._n_slots], h.dtype) for ring in rings
            )
            return _attend(queries, filled, mixed, bias)

        for layer in model.layers:
            h = layer(h, cos, sin, attend, self._project)
        logits: Tensor = model.output(model.norm(h).to(torch.float32))
        return logits

    def _compute_bias(self) -> Tensor:
        """0 where a slot is seen and -inf where not, (B, S) float32."""
        capacity, window = self._cache.capacity, self._cache.window
        at = self.positions[:, None]
        # How far each slot lies behind the query, as in `CacheRow.slot_positions` and `cache.visible`.
        distance = (at - self._slots) % capacity  # (B, S)
        seen = (distance <= at) & (self._slots < capacity)
        if window is not None:
            seen &= distance < window
        seen |= at < 0  # or what is absent would be no number
        return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -torch.inf)

    def _project(self, linear: nn.Module, x: Tensor) -> Tensor:
        """A linear times x (B, in), with what the adapters of each row add: (B, out)."""
        y: Tensor = linear(x)
        for number, updates in enumerate(self._model.adapters):
            if update := updates.get(linear):
                scales = update.scales * (self.adapters == number)[:, None]  # (B, ranks)
                y = y + (F.linear(x, update.down) * scales.to(x.dtype)) @ update.up
        return y

    @torch.inference_mode()
    def _capture(self, device: torch.device) -> Callable[[], Tensor]:
        """Record the pass, with no row taking part; returns what replays it."""
        with torch.cuda.device(device):
            stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_N_WARM_UPS):
                    self.compute()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                logits = self.compute()
        self.pool = graph.pool()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay


def _select(batch: Batch, chosen: Sequence[bool]) -> tuple[Batch, list[int]]:
    """The batch of the spans that are chosen, and which of the wanted logits are of them."""
    tokens, at = list[int](), 0
    for span, is_chosen in zip(batch.spans, chosen, strict=True):
        tokens += range(at, at + span.n) if is_chosen else ()
        at += span.n
    place = {token: n for n, token in enumerate(tokens)}
    wanted = {n: place[token] for n, token in enumerate(batch.wanted.tolist()) if token in place}
    spans = tuple(span for span, is_chosen in zip(batch.spans, chosen, strict=True) if is_chosen)
    index = torch.tensor(tokens, device=batch.tokens.device)
    ends = torch.tensor(list(wanted.values()), dtype=torch.int64, device=index.device)
    return Batch(batch.tokens[index], batch.positions[index], spans, ends), list(wanted)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Attention of one query a row, (B, H, D), over its ring (B, K, S, D), under `bias` (B, S).

    Products of matrices spread over a card however few rows there are; SDPA would give each head to one
    of its processors.
    """
    B, H, D = queries.shape
    K, S = keys.shape[1:3]
    grouped = queries.view(B * K, H // K, D)  # heads that share a kv head are queries of one head
    scores = _multiply(grouped, keys.flatten(0, 1).transpose(1, 2)).view(B, H, S)
    shares = torch.softmax(scores * D**-0.5 + bias[:, None], -1).to(values.dtype)
    mixed = _multiply(shares.view(B * K, H // K, S), values.flatten(0, 1))
    return mixed.view(B, H, D).to(queries.dtype)


def _multiply(first: Tensor, second: Tensor) -> Tensor:
    """Matrices times matrices; the sums are float32 and stay so."""
    if first.is_cuda and first.dtype != torch.float32:
        return torch.bmm(first, second, out_dtype=torch.float32)
    return torch.bmm(first.float(), second.float())


def _round_up(n: int) -> int:
    """The least power of two that is not less than `n`."""
    return 1 << (n - 1).bit_length()
