"""The rolling KV cache: one ring of slots per layer, one rule for what a query may see.

Knows positions and slots; knows nothing about heads' meaning, text or weights.

    slot(p)       = p % capacity
    visible(q, k) = 0 <= k <= q and q - k < window          # no window: drop the last term
    capacity      = window + prefill_chunk - 1              # no window: the context length

Keys are rotated before they are written, so the order of slots does not matter: writing comes
first, then every query of the chunk attends to all filled slots under the mask. A chunk of T <= prefill_chunk
tokens at position n overwrites positions up to n+T-1-capacity <= n-window, which its first query,
and so every later one, no longer sees.

Worked example, window 3, chunk 2, capacity 4, after 6 tokens: slots hold positions [4, 5, 2, 3];
the query at position 6 is written to slot 2 and sees 4, 5 and 6.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from m7b.runtime.config import ModelConfig


@dataclass(frozen=True, slots=True)
class CacheSpan:
    """Where one chunk goes: its first slot, its length, and how many slots are filled after it."""

    slot: int
    length: int
    filled: int


class LayerCache:
    """The keys and values of one layer, each (K, S, D)."""

    def __init__(
        self, n_kv_heads: int, capacity: int, head_dim: int, dtype: torch.dtype, device: str
    ) -> None:
        shape = (n_kv_heads, capacity, head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)

    def write(self, span: CacheSpan, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store `keys` and `values` (K, T, D); returns views of all filled slots, each (K, S, D)."""
        head = min(span.length, self.keys.shape[1] - span.slot)
        tail = span.length - head
        for ring, chunk in ((self.keys, keys), (self.values, values)):
            ring[:, span.slot : span.slot + head] = chunk[:, :head]
            if tail:
                ring[:, :tail] = chunk[:, head:]
        return self.keys[:, : span.filled], self.values[:, : span.filled]

    @property
    def n_bytes(self) -> int:
        """Bytes allocated for the layer."""
        return self.keys.nbytes + self.values.nbytes


class RollingKVCache:
    """Keys and values of one sequence, and the position that every slot holds.

    Args:
        config: gives layers, heads and the window.
        ctx_size: the most tokens the sequence may have.
        prefill_chunk: the most tokens one forward pass may add.
        dtype: of keys and values.
        devices: the device of each layer, as a string that torch understands.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        ctx_size: int,
        prefill_chunk: int,
        dtype: torch.dtype,
        devices: Sequence[str],
    ) -> None:
        self.window = config.sliding_window
        self.prefill_chunk = prefill_chunk
        self.capacity = config.cache_slots(ctx_size, prefill_chunk)
        self.layers = [
            LayerCache(config.n_kv_heads, self.capacity, config.head_dim, dtype, device) for device in devices
        ]
        self._slot_positions = torch.full((self.capacity,), -1)  # (S,), -1: never written
        self._length = 0
        self._reserved = 0  # one past the highest position whose slot may have been overwritten
        self._filled = 0  # one past the highest position that every layer has written

    @property
    def length(self) -> int:
        """Tokens in the sequence, those that have rolled out of the ring included."""
        return self._length

    @property
    def n_bytes(self) -> int:
        """Bytes allocated for keys and values."""
        return sum(layer.n_bytes for layer in self.layers)

    def reserve(self, length: int) -> tuple[CacheSpan, Tensor, Tensor]:
        """Slots for the next `length` tokens, their positions (T,) and what each may see (T, S).

        Nothing counts as written until `commit`, so a forward pass may be interrupted anywhere.
        """
        assert 0 < length <= self.prefill_chunk, (
            "a chunk longer than prefill_chunk could overwrite visible keys"
        )
        start, end = self._length, self._length + length
        assert self.window is not None or end <= self.capacity, "the engine checks the context length"
        span = CacheSpan(start % self.capacity, length, min(max(end, self._filled), self.capacity))
        positions = torch.arange(start, end)
        self._slot_positions[positions % self.capacity] = positions
        self._reserved = max(self._reserved, end)
        return span, positions, visible(positions, self._slot_positions[: span.filled], self.window)

    def commit(self, span: CacheSpan) -> None:
        """Count the tokens of `span` as part of the sequence: every layer has written them."""
        self._length += span.length
        self._filled = max(self._filled, self._length)

    def can_rewind(self, length: int) -> bool:
        """Whether the cache can drop back to `length` tokens and still hold all that the next may see.

        After L tokens the ring holds positions L-capacity to L-1. A query at position n needs n-window+1 on.
        """
        if length == 0:
            return True
        if length > self._length:
            return False
        oldest = max(0, self._reserved - self.capacity)
        first_seen = 0 if self.window is None else max(0, length - self.window + 1)
        return first_seen >= min(oldest, length)  # a window of 1 needs no key at all

    def rewind(self, length: int) -> None:
        """Drop back to `length` tokens. Only legal where `can_rewind` says so."""
        assert self.can_rewind(length)
        self._length = length
        if length == 0 or self._reserved <= self.capacity:
            # Nothing has rolled out: forget the slots past it, and whatever they hold.
            self._slot_positions[length:] = -1
            self._reserved = self._filled = length
        # Else they hold later positions, which no query sees before they are written again.


def visible(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Which key positions (S,) each query position (T,) may attend to: (T, S) bool.

    Token i sees i-window < j <= i: itself and window-1 before it, as in the masks of
    mistral-inference and transformers. (The paper's "between i-W and i" would be one more.)
    """
    distance = queries[:, None] - keys
    seen = (distance >= 0) & (keys >= 0)
    return seen if window is None else seen & (distance < window)
