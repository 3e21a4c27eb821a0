"""The rolling KV cache: a ring of slots for each sequence, one rule for what a query may see.

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

Each sequence has a row of the cache, a ring in every layer, as long as that sequence may need. What a row
holds can be copied to another, so that sequences with one beginning read it once.
"""

from array import array
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from m7b.runtime.kv import Blocks, KvFormat, choose_format
from m7b.runtime.model.batch import Span
from m7b.runtime.model.config import ModelConfig


class CacheRow:
    """The keys and values of one sequence.

    Args:
        keys: the ring of each layer, unwritten: K kv heads and S slots of what the format makes of D numbers.
        values: the same.
        window: as the configuration has it.
        format: how keys and values are held.

    Attributes:
        keys: as given.
        values: the same.
        capacity: S.
    """

    def __init__(
        self, keys: list[Tensor], values: list[Tensor], window: int | None, format: KvFormat
    ) -> None:
        self.keys, self.values = keys, values
        self.window, self.capacity, self._format = window, keys[0].shape[1], format
        # Where the kernels find each layer's keys and values.
        self.addresses = array("q", [ring.data_ptr() for ring in self.list_rings()])
        self._length = 0
        self._reserved = 0  # one past the highest position whose slot may have been overwritten
        self._oldest = 0  # the first position that was ever written here: a copy leaves out what rolled out

    @property
    def length(self) -> int:
        """Tokens in the sequence, those that have rolled out of the ring included."""
        return self._length

    @property
    def is_in_blocks(self) -> bool:
        """Whether keys and values are held in blocks of 8 bits."""
        return isinstance(self._format, Blocks)

    @property
    def n_bytes(self) -> int:
        """Bytes allocated for keys and values."""
        return sum(ring.nbytes for ring in self.list_rings())

    def reserve(self, span: Span) -> None:
        """Expect the tokens of `span`, the next of the sequence. Nothing counts as written until `commit`.

        Those that were committed and never heard of, because of an interrupt, are written again.
        """
        assert span.first <= self._length, "tokens follow those that the row holds"
        assert self.window is not None or span.end <= self.capacity, "the engine checks the context length"
        self._reserved = max(self._reserved, span.end)

    def commit(self, span: Span) -> None:
        """Count the tokens of `span` as part of the sequence: every layer has written them."""
        self._length = span.end

    def write(self, layer: int, span: Span, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store `keys` and `values` (K, T, D) of `span`; returns those of filled slots, each (K, S, D)."""
        slot = span.first % self.capacity
        head = min(span.n, self.capacity - slot)
        rings = self.keys[layer], self.values[layer]
        for ring, numbers in zip(rings, (keys, values), strict=True):
            chunk = self._format.encode(numbers)
            ring[:, slot : slot + head] = chunk[:, :head]
            if head < span.n:
                ring[:, : span.n - head] = chunk[:, head:]
        n_filled = min(span.end, self.capacity)
        filled, filled_values = (self._format.decode(ring[:, :n_filled], keys.dtype) for ring in rings)
        return filled, filled_values

    def slot_positions(self, end: int) -> Tensor:
        """The position that each filled slot holds, (S,), once all positions below `end` are written.

        After a rewind a slot may hold a later one: then the position told here has left every window.
        """
        slots = torch.arange(min(end, self.capacity))
        return end - 1 - (end - 1 - slots) % self.capacity

    def holds(self, length: int) -> bool:
        """Whether the row has all that the token behind the first `length` may see.

        After L tokens the ring holds positions L-capacity to L-1. A query at position n needs n-window+1 on.
        """
        if length == 0:
            return True
        if length > self._length:
            return False
        oldest = max(self._oldest, self._reserved - self.capacity)
        first_seen = 0 if self.window is None else max(0, length - self.window + 1)
        return first_seen >= min(oldest, length)  # a window of 1 needs no key at all

    def rewind(self, length: int) -> None:
        """Drop back to `length` tokens. Only legal where `holds` says so."""
        assert self.holds(length)
        self._length = length
        if length == 0 or self._reserved <= self.capacity:
            # Nothing has rolled out: what slots past it hold is never looked at again.
            self._reserved = length
            self._oldest = min(self._oldest, length)
        # Else they hold later positions, which no query sees before they are written again.

    def copy_prefix(self, source: "CacheRow", length: int) -> None:
        """Take over the first `length` tokens of `source`, as many of them as this ring has slots for."""
        assert source.holds(length)
        positions = torch.arange(max(0, length - self.capacity), length)
        mine, theirs = positions % self.capacity, positions % source.capacity
        for to, of in zip(self.list_rings(), source.list_rings(), strict=True):
            to[:, mine.to(to.device)] = of[:, theirs.to(of.device)]
        self._length = self._reserved = length
        self._oldest = max(
            int(positions[0]) if length else 0, source._reserved - source.capacity, source._oldest
        )

    def list_positions(self, length: int) -> range:
        """The positions whose keys and values the row still has, of the first `length` tokens."""
        return range(max(0, self._oldest, self._reserved - self.capacity), length)

    def list_rings(self) -> list[Tensor]:
        """The keys and values of each layer in turn, as they are held."""
        return [ring for pair in zip(self.keys, self.values, strict=True) for ring in pair]

    def read(self, positions: range) -> Iterator[Tensor]:
        """What is held of `positions`, (K, n, D) or what the format makes of it, ring after ring, copied."""
        slots = torch.arange(positions.start, positions.stop) % self.capacity
        for ring in self.list_rings():
            yield ring[:, slots.to(ring.device)].cpu()

    def restore(self, first: int, length: int, rings: Iterator[Tensor]) -> None:
        """Let the row hold `length` tokens, having read from `rings` what another did from `first` on.

        Raises:
            ValueError: there are fewer rings or more, or of another shape. The row is empty then.
        """
        self._length = self._reserved = self._oldest = 0
        start = max(first, length - self.capacity)
        slots = torch.arange(start, length) % self.capacity
        own = self.list_rings()
        n_given = 0
        for ring, given in zip(own, rings, strict=False):
            wanted = (ring.shape[0], length - first, *ring.shape[2:])
            if (
                given.dtype != ring.dtype
                or len(given.shape) != 3
                or given[:, : length - first].shape != wanted
            ):
                raise ValueError(f"{tuple(given.shape)} {given.dtype} cannot be keys or values here")
            ring[:, slots.to(ring.device)] = given[:, start - first : length - first].to(ring.device)
            n_given += 1
        if n_given < len(own) or next(rings, None) is not None:
            raise ValueError(f"there are keys and values of other than {len(own) // 2} layers")
        self._length = self._reserved = length
        self._oldest = start


class RollingKVCache:
    """The rows of all sequences of one model.

    Args:
        config: gives layers, heads and the window.
        prefill_chunk: the most tokens of one sequence that a forward pass may add.
        dtype: that the model runs in.
        devices: the device of each layer, as a string that torch understands.
        kv_type: how keys and values are held, None: in `dtype`.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        prefill_chunk: int,
        dtype: torch.dtype,
        devices: Sequence[str],
        kv_type: str | None = None,
    ) -> None:
        self.config, self.prefill_chunk, self.kv_type = config, prefill_chunk, kv_type
        self._dtype, self._devices = dtype, devices
        self._format = choose_format(kv_type, dtype, config.head_dim)
        self._rows: dict[int, CacheRow] = {}
        self._next = 0

    def like(self) -> "RollingKVCache":
        """An empty cache for the same model."""
        return RollingKVCache(
            self.config,
            prefill_chunk=self.prefill_chunk,
            dtype=self._dtype,
            devices=self._devices,
            kv_type=self.kv_type,
        )

    def __getitem__(self, row: int) -> CacheRow:
        return self._rows[row]

    @property
    def window(self) -> int | None:
        """As the configuration has it."""
        return self.config.sliding_window

    @property
    def most_rows(self) -> int | None:
        """How many rows there is room for, None where that depends on how long they are."""
        return None

    @property
    def n_bytes(self) -> int:
        """Bytes allocated for keys and values of all rows."""
        return sum(row.n_bytes for row in self._rows.values())

    def add_row(self, n_tokens: int) -> int:
        """Make room for a sequence of `n_tokens`; returns the number of its row.

        The system hands memory out as it is written, so a row costs what it holds.
        """
        capacity = self.config.cache_slots(n_tokens, self.prefill_chunk)
        shape = (self.config.n_kv_heads, capacity, self.config.head_dim)
        keys, values = ([self._format.make_ring(shape, each) for each in self._devices] for _ in range(2))
        row, self._next = self._next, self._next + 1
        self._rows[row] = CacheRow(keys, values, self.window, self._format)
        return row

    def remove_row(self, row: int) -> None:
        """Give the memory of a row back."""
        del self._rows[row]

    def row_bytes(self, n_tokens: int) -> int:
        """Bytes that a row for a sequence of `n_tokens` takes when it is full."""
        slots = self.config.cache_slots(n_tokens, self.prefill_chunk)
        return slots * self.bytes_per_token

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values that one token takes."""
        return self.config.cache_bytes_per_token(self._dtype.itemsize, self.kv_type)

    def reserve(self, spans: Sequence[Span]) -> None:
        """Expect the tokens of a batch. A pass may be interrupted anywhere before `commit`."""
        for span in spans:
            assert 0 < span.n <= self.prefill_chunk, (
                "a chunk longer than prefill_chunk could overwrite visible keys"
            )
            self._rows[span.row].reserve(span)

    def commit(self, spans: Sequence[Span]) -> None:
        """Count the tokens of a batch as part of their sequences."""
        for span in spans:
            self._rows[span.row].commit(span)


def visible(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Which key positions (S,) each query position (T,) may attend to: (T, S) bool.

    Token i sees i-window < j <= i: itself and window-1 before it, as in the masks of
    mistral-inference and transformers. (The paper's "between i-W and i" would be one more.)
    """
    distance = queries[:, None] - keys
    seen = (distance >= 0) & (keys >= 0)
    return seen if window is None else seen & (distance < window)
