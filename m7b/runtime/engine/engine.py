"""What may be asked of a loaded model: answers, logits and scores. The scheduler does the work."""

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Ids
from copy import copy
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from m7b.errors import ContextOverflow, OutOfResources, UsageError
from m7b.generation import Draft, PromptProgress, SamplingParams, Step, TokenLogprob
from m7b.runtime.backends import Backend, Batching
from m7b.runtime.cache import RollingKVCache
from m7b.runtime.engine.judgement import Judgement
from m7b.runtime.engine.rows import Job, Rows
from m7b.runtime.engine.sampling import compute_logprob
from m7b.runtime.engine.scheduler import Scheduler
from m7b.runtime.engine.sequence import Sequence
from m7b.runtime.model.batch import Span
from m7b.runtime.model.transformer import Transformer
from m7b.runtime.saved_rows import SavedRow, write_row


class Engine:
    """One model, and all the sequences that it works on.

    A call whose ids begin like those in a row of the cache reads only the rest. Closing a generator at any
    point leaves the engine ready for the next call.

    Args:
        model: the transformer, loaded.
        backend: what it was built of.
        cache: empty, made for `model`.
        ctx_size: the most tokens, prompt and answer together, that one sequence may hold.
        device: where the model takes its tokens.
        draft: where guesses at answers come from. Where a backend gives tokens other bits beside each other,
            there are none.

    Attributes:
        model: as given, to look at.
        cache: the same.
        rows: what the rows of the cache hold.
    """

    def __init__(
        self,
        model: Transformer,
        backend: Backend,
        cache: RollingKVCache,
        ctx_size: int,
        device: str = "cpu",
        draft: str = Draft.OFF,
    ) -> None:
        self.model, self.cache = model, cache
        self._backend, self._ctx_size, self._device = backend, ctx_size, device
        self.rows = Rows(cache, backend.batching, ctx_size, checks_memory=device == "cpu")
        self._draft, self._adapter = draft, 0
        self._drafting = backend.drafting if draft == Draft.LOOKUP else None
        self._scheduler = Scheduler(
            backend.bind(model),
            self.rows,
            backend.batching,
            device,
            self._drafting,
            chooses_there=backend.is_static,
        )

    def unfuse(self) -> "Engine":
        """Another engine over the same weights, which runs layers part by part, so that hooks see each."""
        engine = Engine(
            self.model,
            replace(self._backend, fuses=False),
            self.cache.like(),
            self._ctx_size,
            self._device,
            self._draft,
        )
        return engine.with_adapter(self._adapter)

    def with_adapter(self, adapter: int) -> "Engine":
        """This engine for what goes through the mix of adapters of that number, beside all else."""
        assert adapter < max(1, len(self.model.adapters)), "the model was loaded with as many"
        engine = copy(self)
        engine._adapter = adapter
        return engine

    def without_drafts(self) -> "Engine":
        """This engine for answers that nothing is guessed of, beside all else."""
        engine = copy(self)
        engine._drafting = None
        return engine

    def pretend(self, row: int, ids: Ids[int]) -> None:
        """Take `row` to hold `ids`, though it was filled by hand: to measure speed at a depth."""
        assert len(ids) == self.cache[row].length, "the row was filled to another length"
        self.rows.take_up(Span(row, 0, len(ids)), ids)

    def submit(self, ids: Ids[int], params: SamplingParams, *, is_exact: bool = True) -> Sequence:
        """Queue `ids` to be continued beside all else; `step` does the work, the sequence tells what comes.

        With `max_tokens` 0 it is done at once. `is_exact` answers do not depend on what was read before, not
        even by rounding.

        Raises:
            ContextOverflow: the prompt leaves no room for a token.
            UsageError: `ids` is empty or not of this vocabulary.
        """
        self._check(ids)
        if len(ids) >= self._ctx_size:
            raise ContextOverflow(
                f"the prompt has {len(ids)} tokens and the context holds {self._ctx_size}",
                hint="shorten it or raise --ctx-size",
            )
        budget = min(params.max_tokens, self._ctx_size - len(ids))
        vocab_size = self.model.config.vocab_size
        sequence = Sequence(
            ids,
            params,
            budget,
            vocab_size,
            is_exact=is_exact,
            drafting=self._drafting,
            adapter=self._adapter,
        )
        if budget == 0:
            sequence.is_done = True
        else:
            self._scheduler.add(sequence)
        return sequence

    def judge(self, context: Ids[int], ending: Ids[int], finals: Ids[int]) -> Judgement:
        """Queue a text to be read, to tell how likely each of `finals` is behind `context` and `ending`.

        `step` does the work, beside all else; what begins like another is read once. Where rounding depends
        on how a text is cut, what was read before may change last bits.

        Raises:
            ContextOverflow: context and ending do not fit.
            UsageError: there is no context, or ids are not of this vocabulary.
        """
        self._check(context)
        self._check([*context, *ending, *finals])
        n_read = len(context) + len(ending)
        if n_read > self._ctx_size:
            raise ContextOverflow(
                f"the text has {n_read} tokens and the context holds {self._ctx_size}",
                hint="shorten it or raise --ctx-size",
            )
        is_exact = self._backend.batching is Batching.EXACT
        judgement = Judgement(context, ending, finals, is_exact=is_exact, adapter=self._adapter)
        self._scheduler.add(judgement)
        return judgement

    def suggest_parallel(self, n_tokens: int) -> int:
        """How many sequences of `n_tokens` are worth running at once: as many as pay and fit into memory."""
        most = self._backend.n_paying
        return max(1, min(most, self.rows.count_fitting(min(n_tokens, self._ctx_size))))

    def step(self) -> None:
        """Do the next batch of work for the sequences that were submitted.

        Raises:
            OutOfResources: memory ran out.
        """
        self._scheduler.step()

    def cancel(self, sequence: Job) -> None:
        """Let `sequence` go before its end; does nothing behind it."""
        sequence.cancel()
        self._scheduler.sweep()

    def generate(self, ids: Ids[int], params: SamplingParams) -> Iterator[PromptProgress | Step]:
        """Continue `ids`: progress while the prompt is read, then one step a token.

        The last step carries the finish reason; with `max_tokens` 0 there is no step at all.

        Raises:
            ContextOverflow: the prompt leaves no room for a token.
            OutOfResources: memory ran out.
            UsageError: `ids` is empty or not of this vocabulary.
        """
        sequence = self.submit(ids, params, is_exact=False)
        try:
            while sequence.has_events or not sequence.is_done:
                yield from sequence.take()
                if not sequence.is_done:
                    self.step()
        finally:
            self.cancel(sequence)

    def forget(self) -> None:
        """Drop all that earlier calls left: the next answer is that of a new engine, to the last bit.

        A prompt that shares its beginning with the last is read in other chunks than one that does
        not, which in bfloat16 rounds differently.
        """
        self._scheduler.sweep()
        self.rows.forget()

    def count_held(self, ids: Ids[int]) -> int:
        """How many of `ids` some row holds already."""
        return self.rows.find_held(ids, self._adapter)[0]

    def list_held(self, ids: Ids[int], *, is_exact: bool) -> list[int]:
        """What the row that begins most like `ids` holds of them, and behind all of them.

        Of an `is_exact` one, that is what was read as a fresh row would read it.
        """
        n_shared, row = self.rows.find_held(ids, self._adapter)
        held = self.rows[row]
        if is_exact:
            return held.ids[: min(n_shared, held.n_exact)]
        return list(held.ids if n_shared == len(ids) else held.ids[:n_shared])

    def save(self, file: Path, ids: Ids[int], about: Mapping[str, str]) -> None:
        """Write the row that begins with `ids` up to their end, for `restore` in another process.

        Raises:
            OutOfResources: it cannot be written, or has left the window.
        """
        n_shared, row = self.rows.find_held(ids, self._adapter)
        if n_shared < len(ids) or not self.cache[row].holds(len(ids)):
            raise OutOfResources("its beginning is out of the window already")
        n_exact = min(self.rows[row].n_exact, len(ids))
        write_row(file, self.cache[row], ids, n_exact=n_exact, about=about)

    def restore(self, saved: SavedRow, ids: Ids[int]) -> None:
        """Let a row hold what `saved` has of the beginning of `ids`, if it has what comes next may see.

        Raises:
            DamagedCheckpoint: the file is not what was written.
        """
        self.rows.restore(saved, ids, self._adapter)

    def count_bytes(self, n_tokens: int) -> int:
        """Bytes of keys and values of `n_tokens`."""
        n_slots = self.model.config.cache_slots(n_tokens, self.cache.prefill_chunk)
        return n_slots * self.cache.bytes_per_token

    @property
    def numerics(self) -> dict[str, str]:
        """What decides the bits of keys and values besides the weights, by label."""
        config = self.model.config
        return {
            "arithmetic": self._backend.arithmetic,
            "device": self._device,
            "number format": str(self.model.norm.weight.dtype).removeprefix("torch."),
            "format of keys and values": self.cache.kv_type or "as numbers",
            "window": "none" if config.sliding_window is None else str(config.sliding_window),
            "prefill chunk": str(self.cache.prefill_chunk),
        }

    def logits(self, ids: Ids[int]) -> Iterator[Tensor]:
        """The logits after each of `ids`, chunk by chunk, each (T, V) float32 on the CPU.

        Raises:
            ContextOverflow: `ids` does not fit the context.
            UsageError: `ids` is empty or not of this vocabulary.
        """
        self._check(ids)
        if len(ids) > self._ctx_size:
            raise ContextOverflow(
                f"the text has {len(ids)} tokens and the context holds {self._ctx_size}",
                hint="shorten it or raise --ctx-size",
            )
        chunk = self.cache.prefill_chunk
        with self.rows.claim(len(ids), self._adapter) as row:
            for start in range(0, len(ids), chunk):
                part = ids[start : start + chunk]
                yield self._scheduler.read(Span(row, start, len(part), True, self._adapter), part)

    def score(self, ids: Ids[int], top: int = 0) -> Iterator[TokenLogprob]:
        """The log-probability of each of `ids[1:]` given all before it, with `top` alternatives.

        Raises: as `logits`.
        """
        followers = iter(ids[1:])
        for rows in self.logits(ids):
            for row, token in zip(rows, followers, strict=False):
                yield compute_logprob(row, token, top)

    def _check(self, ids: Ids[int]) -> None:
        if not ids:
            raise UsageError("the prompt is empty", hint="give at least one token to continue from")
        vocab_size = self.model.config.vocab_size
        outside = next((token for token in ids if not 0 <= token < vocab_size), None)
        if outside is not None:
            raise UsageError(
                f"the prompt holds token {outside}",
                hint=f"ids of this model run from 0 to {vocab_size - 1}",
                param="prompt",
            )
