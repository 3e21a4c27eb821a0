"""A cache whose rows lie side by side in one tensor for each layer, for passes of a fixed shape.

Such a pass reads all rows up to some number, and each ring up to some slot, so neither shapes nor addresses
depend on who decodes. A row that takes no part writes to one slot more, behind its ring, that nobody reads.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from m7b.runtime.cache import CacheRow, RollingKVCache
from m7b.runtime.kv import KvFormat
from m7b.runtime.model.config import ModelConfig

_SLOT_STEP = 128  # matrices whose sides are multiples of it are multiplied fastest


def count_slots(config: ModelConfig, ctx_size: int, prefill_chunk: int) -> int:
    """Slots of a row that passes may read: those of its ring, and up to 127 that stay empty."""
    capacity = config.cache_slots(ctx_size, prefill_chunk)
    return -(-capacity // _SLOT_STEP) * _SLOT_STEP


class StaticCache(RollingKVCache):
    """The rows of all sequences of one model, all of one capacity; more room is made as it is needed.

    Args:
        config: gives layers, heads and the window.
        ctx_size: the most tokens of one sequence.
        most_rows: rows that memory has room for, at least one; fewer where it turns out to have less.
        prefill_chunk: the most tokens of one sequence that a forward pass may add.
        dtype: that the model runs in.
        devices: the device of each layer, as a string that torch understands.
        kv_type: how keys and values are held, None: in `dtype`.

    Attributes:
        keys: of each layer, (R or more, K, S + 1, D), or what the format makes of them.
        values: the same.
        capacity: slots of a ring.
        n_slots: S, the capacity and what it is rounded up by.
        n_rows: R, the rows there is room for.
        places: where in these each row lies, by its number.
        version: grows when tensors are replaced by larger ones.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        ctx_size: int,
        most_rows: int,
        prefill_chunk: int,
        dtype: torch.dtype,
        devices: Sequence[str],
        kv_type: str | None = None,
    ) -> None:
        super().__init__(config, prefill_chunk=prefill_chunk, dtype=dtype, devices=devices, kv_type=kv_type)
        self._ctx_size, self._most_rows = ctx_size, most_rows
        self.capacity = config.cache_slots(ctx_size, prefill_chunk)
        self.n_slots = count_slots(config, ctx_size, prefill_chunk)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.places: dict[int, int] = {}
        self.n_rows = self.version = 0
        self._grow(1)

    def like(self) -> "StaticCache":
        """An empty cache for the same model."""
        return StaticCache(
            self.config,
            ctx_size=self._ctx_size,
            most_rows=self._most_rows,
            prefill_chunk=self.prefill_chunk,
            dtype=self._dtype,
            devices=self._devices,
            kv_type=self.kv_type,
        )

    @property
    def most_rows(self) -> int:
        """How many rows there is room for."""
        return self._most_rows

    @property
    def format(self) -> KvFormat:
        """How keys and values are held."""
        return self._format

    def add_row(self, n_tokens: int) -> int:
        """Make room for a sequence of `n_tokens`; returns the number of its row, at the first free place."""
        assert n_tokens <= self._ctx_size, "every row is as long as the context"
        place = min(set(range(len(self.places) + 1)) - set(self.places.values()))
        assert place < self._most_rows, "whoever adds rows knows how many there may be"
        if place == self.n_rows:
            self._grow(min(2 * self.n_rows, self._most_rows))
        row, self._next = self._next, self._next + 1
        self.places[row] = place
        self._rows[row] = CacheRow(*self._view(place), self.window, self._format)
        return row

    def remove_row(self, row: int) -> None:
        """Let others have the place of a row."""
        super().remove_row(row)
        del self.places[row]

    def row_bytes(self, n_tokens: int) -> int:
        """Bytes of a row, which are the same whatever the tokens."""
        return (self.n_slots + 1) * self.bytes_per_token

    def _grow(self, n_rows: int) -> None:
        """Have room for `n_rows`; rows that exist keep what they hold.

        One tensor is replaced after the other, so memory holds little twice.
        """
        K = self.config.n_kv_heads
        try:
            for rings in (self.keys, self.values):
                for layer, device in enumerate(self._devices):
                    shape = (n_rows * K, self.n_slots + 1, self.config.head_dim)
                    # Passes multiply what nobody has written by 0, which must be numbers.
                    ring = self._format.make_ring(shape, device).zero_()
                    ring = ring.view(n_rows, K, *ring.shape[1:])
                    if layer == len(rings):
                        rings.append(ring)
                    else:
                        ring[: len(rings[layer])] = rings[layer]
                        rings[layer] = ring
            self.n_rows = n_rows
        except torch.OutOfMemoryError:
            self._most_rows = self.n_rows  # somebody else has what was planned for rows
            raise
        finally:  # where memory runs out in the middle, some tensors are larger than others
            self.version += 1
            for row, place in self.places.items():
                self._rows[row].keys, self._rows[row].values = self._view(place)
            if any(device.startswith("cuda") for device in self._devices):
                torch.cuda.empty_cache()

    def _view(self, place: int) -> tuple[list[Tensor], list[Tensor]]:
        """The rings of a place, each (K, S, D)."""
        keys, values = (
            [ring[place, :, : self.capacity] for ring in rings] for rings in (self.keys, self.values)
        )
        return keys, values
