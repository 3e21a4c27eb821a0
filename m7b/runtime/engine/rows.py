"""Which row of the cache a sequence gets: one that holds the beginning of its prompt, or has room for it."""

import sys
from collections.abc import Iterator
from collections.abc import Sequence as Ids
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from m7b.errors import OutOfResources
from m7b.runtime.backends import Batching
from m7b.runtime.cache import RollingKVCache
from m7b.runtime.engine.judgement import Judgement
from m7b.runtime.engine.sequence import Sequence
from m7b.runtime.machine import free_memory
from m7b.runtime.model.batch import Span
from m7b.runtime.placement import memory_errors
from m7b.runtime.saved_rows import SavedRow, count_common

Job = Sequence | Judgement
"""What a row is given to: a prompt and its answer, or a text to judge."""

_WORTH_WAITING = 32  # tokens of a common beginning, from which waiting is better than reading it twice


@dataclass(slots=True)
class Held:
    """What one row of the cache holds.

    It has room for `n_tokens`, and `ids` are those that it holds, the first `n_exact` of which were read as
    a fresh row would read them. `prompt` is the last one that was read to its end, and `logits` (V,) those
    after it. `user` is the sequence that runs there; `is_idle` rows may be given to another. All of it went
    through the mix of adapters with the number `adapter`, and is of no use to another.
    """

    n_tokens: int
    ids: list[int] = field(default_factory=list)
    n_exact: int = 0
    prompt: list[int] = field(default_factory=list)
    logits: Tensor | None = None
    user: Job | None = None
    is_idle: bool = True
    adapter: int = 0


class Rows:
    """The rows of one cache.

    Args:
        cache: empty.
        batching: what the backend promises, which says how much of a prompt may be shared.
        ctx_size: the most tokens of one sequence. One row with room for them stays for good.
        checks_memory: whether rows are in the memory that this process can measure.
    """

    def __init__(
        self, cache: RollingKVCache, batching: Batching, ctx_size: int, *, checks_memory: bool
    ) -> None:
        self.cache = cache
        self._batching, self._checks_memory, self._ctx_size = batching, checks_memory, ctx_size
        self._held: dict[int, Held] = {}
        self.main = self._add(ctx_size)

    def __getitem__(self, row: int) -> Held:
        return self._held[row]

    def list_held(self) -> list[Held]:
        """What each row holds."""
        return list(self._held.values())

    def should_wait(self, sequence: Job) -> bool:
        """Whether another sequence is about to read much of its prompt, which can then be copied."""
        here = max(self._count_shared(sequence, row) for row in self._held)
        return self._count_planned(sequence) > max(here, _WORTH_WAITING)

    def place(self, sequence: Job) -> bool:
        """Give `sequence` a row and let it start there; False where there is no room."""
        n_shared, _, source = max(
            (self._count_shared(sequence, row), self._is_fit(row, sequence.longest), row)
            for row in self._held
        )
        is_in_place = n_shared > 0 and self._is_fit(source, sequence.longest)
        row = source if is_in_place else self._find_room(sequence.longest, keep=source if n_shared else None)
        if row is None:
            return False
        if is_in_place:
            self.rewind(row, n_shared)
        else:
            self._copy(row, source, n_shared)
            self._held[row].adapter = sequence.adapter
        self._held[row].user, self._held[row].is_idle = sequence, False
        sequence.start(row, n_shared)
        return True

    def find_logits(self, sequence: Job) -> Tensor | None:
        """The logits (V,) after the prompt of a sequence whose row was given to it with all of it."""
        assert sequence.row is not None
        return self._held[sequence.row].logits

    def release(self, sequence: Job) -> None:
        """Let others have the row of `sequence`. What it holds stays until somebody needs the room."""
        if sequence.row is not None:
            self._held[sequence.row].user, self._held[sequence.row].is_idle = None, True

    def take_up(self, span: Span, ids: Ids[int]) -> None:
        """Count the `ids` of `span`, which a pass has brought into its row, as held."""
        held = self._held[span.row]
        del held.ids[span.first :]  # of an earlier try that was interrupted before anybody heard of it
        held.n_exact = min(held.n_exact, span.first)
        is_exact = span.is_prompt and held.n_exact == span.first == self._whole_chunks(span.first)
        held.ids += ids
        held.n_exact += len(ids) if is_exact else 0

    def rewind(self, row: int, length: int) -> None:
        """Drop all but the first `length` ids of a row."""
        held = self._held[row]
        self.cache[row].rewind(length)
        del held.ids[length:]
        held.n_exact = min(held.n_exact, length)

    def forget(self) -> None:
        """Drop all that idle rows hold, and all of them but one."""
        for row in [row for row, held in self._held.items() if held.is_idle]:
            if row == self.main:
                self._reset(row)
            else:
                self._remove(row)

    def find_held(self, ids: Ids[int], adapter: int) -> tuple[int, int]:
        """How many of `ids` the row holds that has most of them, and which row that is."""
        fitting = (row for row, held in self._held.items() if held.adapter == adapter)
        return max(((count_common(self._held[row].ids, ids), row) for row in fitting), default=(0, self.main))

    def restore(self, saved: SavedRow, ids: Ids[int], adapter: int) -> None:
        """Let an idle row hold what `saved` has of the beginning of `ids`, but for the last of them.

        Where that lacks what the next token may see, or there is no row, nothing happens.

        Raises:
            DamagedCheckpoint: the file is not what was written.
        """
        n_shared = min(saved.count_shared(ids), len(ids) - 1)
        row = self._find_room(self._held[self.main].n_tokens)
        if row is None or n_shared == 0:
            return
        self._reset(row)
        saved.restore(self.cache[row], len(saved.ids) if saved.first else n_shared)
        if not self.cache[row].holds(n_shared):
            self._reset(row)
            return
        self.cache[row].rewind(n_shared)
        held = self._held[row]
        held.ids, held.n_exact, held.adapter = saved.ids[:n_shared], min(saved.n_exact, n_shared), adapter

    @contextmanager
    def claim(self, n_tokens: int, adapter: int = 0) -> Iterator[int]:
        """An empty row with room for `n_tokens`, which nobody else is given meanwhile.

        What is read there goes through the mix of adapters `adapter`.

        Raises:
            OutOfResources: there is no room.
        """
        row = self._find_room(n_tokens)
        if row is None:
            raise self.describe_shortage(n_tokens)
        self._reset(row)
        self._held[row].is_idle, self._held[row].adapter = False, adapter
        try:
            yield row
        finally:
            self._held[row].is_idle = True

    def count_fitting(self, n_tokens: int) -> int:
        """How many sequences of `n_tokens` free memory has room for, beside the row that is always there."""
        free = self._free_bytes()
        return sys.maxsize if free is None else 1 + max(0, free) // self.cache.row_bytes(n_tokens)

    def describe_shortage(self, n_tokens: int) -> OutOfResources:
        """Why there is no row for `n_tokens`, with both figures."""
        needed, free = self.cache.row_bytes(n_tokens), max(0, self._free_bytes() or 0)
        return OutOfResources(
            f"{n_tokens} tokens need {needed >> 20:,} MiB of cache and {free >> 20:,} MiB are free",
            hint="close other programs, or ask for fewer tokens",
        )

    def _free_bytes(self) -> int | None:
        """Memory that no row will claim, idle rows counted as free; None where it cannot be measured."""
        if self.cache.most_rows is not None:
            n_idle = sum(held.is_idle for row, held in self._held.items() if row != self.main)
            return (self.cache.most_rows - len(self._held) + n_idle) * self.cache.row_bytes(self._ctx_size)
        if not self._checks_memory:
            return None
        promised = kept = 0
        for row, held in self._held.items():
            n_wanted = held.user.longest if held.user else held.n_tokens
            whole, written = (self.cache.row_bytes(n) for n in (n_wanted, max(1, len(held.ids))))
            if not held.is_idle:
                promised += max(0, whole - written)
            elif row != self.main:
                kept += written if held.ids else 0
        return free_memory() - promised + kept

    def _is_fit(self, row: int, n_tokens: int) -> bool:
        """Whether `row` can be given to a sequence of `n_tokens`."""
        return self._held[row].is_idle and self._held[row].n_tokens >= n_tokens

    def _copy(self, row: int, source: int, n_shared: int) -> None:
        """Let `row` hold the first `n_shared` ids of `source`, and nothing else."""
        self._reset(row)
        if n_shared:
            held, origin = self._held[row], self._held[source]
            self.cache[row].copy_prefix(self.cache[source], n_shared)
            held.ids, held.n_exact = origin.ids[:n_shared], min(origin.n_exact, n_shared)
            held.prompt, held.logits = origin.prompt, origin.logits

    def _find_room(self, n_tokens: int, keep: int | None = None) -> int | None:
        """An idle row for `n_tokens` with the least to lose, or a new one."""
        idle = [row for row, held in self._held.items() if held.is_idle and row != keep]
        fitting = [row for row in idle if self._held[row].n_tokens >= n_tokens]
        if fitting:
            return min(fitting, key=lambda row: (len(self._held[row].ids), self._held[row].n_tokens))
        free = self._free_bytes()
        if free is not None and self.cache.row_bytes(n_tokens) > free:
            return None
        for row in idle:
            if row != self.main:
                self._remove(row)
        try:
            with memory_errors():
                return self._add(n_tokens)
        except OutOfResources:
            return None

    def _count_shared(self, sequence: Job, row: int) -> int:
        """How many ids of the prompt `row` can hand over: all of them only with the logits after."""
        held, prompt = self._held[row], sequence.ids
        if held.adapter != sequence.adapter:
            return 0
        n_shared = count_common(held.ids, prompt)
        if sequence.is_exact:
            n_shared = min(n_shared, held.n_exact)
        has_logits = held.logits is not None and held.prompt == prompt and sequence.n_given == len(prompt) - 1
        if n_shared == len(prompt) and has_logits:
            return n_shared if self.cache[row].holds(n_shared) else 0
        n_shared = min(n_shared, sequence.n_given)  # what follows is read again: its logits are wanted
        if sequence.is_exact:
            n_shared = self._whole_chunks(n_shared)
        return n_shared if self.cache[row].holds(n_shared) else 0

    def _count_planned(self, sequence: Job) -> int:
        """How many ids of the prompt some running sequence will have read before long."""
        most = 0
        for held in self._held.values():
            if held.user and held.user.reads_prompt and held.adapter == sequence.adapter:
                n_shared = count_common(held.user.ids, sequence.ids)
                if n_shared < len(sequence.ids):
                    n_shared = min(n_shared, sequence.n_given)
                    n_shared = self._whole_chunks(n_shared) if sequence.is_exact else n_shared
                most = max(most, n_shared)
        return most

    def _whole_chunks(self, n: int) -> int:
        """The most of `n` tokens of a prompt that a fresh row would read in one piece or several."""
        chunk = self.cache.prefill_chunk
        return n if self._batching is Batching.EXACT else n // chunk * chunk

    def _add(self, n_tokens: int) -> int:
        row = self.cache.add_row(n_tokens)
        self._held[row] = Held(n_tokens if self.cache.most_rows is None else self._ctx_size)
        return row

    def _remove(self, row: int) -> None:
        self.cache.remove_row(row)
        del self._held[row]

    def _reset(self, row: int) -> None:
        self.cache[row].rewind(0)
        self._held[row] = Held(self._held[row].n_tokens)
