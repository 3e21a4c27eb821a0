"""Continuous batching: who runs, and which tokens the next pass works on. Knows no text.

A sequence waits until there is a row for it, reads its prompt chunk by chunk, decodes token by token, and
leaves. Each step is one pass over a batch: the next tokens of all that decode, and prompts in order of
arrival up to a budget of tokens. So a long prompt delays those that decode by one chunk at most.
"""

from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as Ids

import torch
from torch import Tensor

from m7b.errors import M7bError
from m7b.runtime.backends import FEW, Batching, Drafting, Forward
from m7b.runtime.engine.device_sampling import Chosen, choose_together
from m7b.runtime.engine.rows import Job, Rows
from m7b.runtime.engine.sampling import Wish
from m7b.runtime.engine.sequence import Sequence
from m7b.runtime.model.batch import Batch, Span
from m7b.runtime.placement import memory_errors

_CHUNK_BESIDE = 128  # tokens of prompts beside sequences that decode


class Scheduler:
    """All sequences of one model.

    Args:
        forward: the model, ready to run.
        rows: of its cache.
        batching: what the backend promises.
        device: where the model takes its tokens.
        drafting: what guesses at answers cost, None for no guesses.
        chooses_there: whether tokens are chosen where logits are, so that these need not leave the device.
    """

    def __init__(
        self,
        forward: Forward,
        rows: Rows,
        batching: Batching,
        device: str,
        drafting: Drafting | None = None,
        *,
        chooses_there: bool = False,
    ) -> None:
        self._forward, self._rows, self._batching, self._device = forward, rows, batching, device
        self._drafting, self._chooses_there = drafting, chooses_there
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []

    def add(self, sequence: Job) -> None:
        """Let `sequence` wait for its turn."""
        self._waiting.append(sequence)

    def sweep(self) -> None:
        """Let go of all sequences that are done."""
        self._waiting = deque(each for each in self._waiting if not each.is_done)
        for sequence in [each for each in self._running if each.is_done]:
            self._running.remove(sequence)
            self._rows.release(sequence)

    def step(self) -> None:
        """Run one batch, of the sequences whose last tokens were taken if there are any.

        Whoever does not look at what a sequence says holds up that sequence alone.

        Raises:
            OutOfResources: memory ran out, or does not suffice for the only sequence there is.
        """
        self.sweep()
        self._admit()
        working = [each for each in self._running if not each.is_done]
        ready = [each for each in working if not each.is_ahead] or working
        spans = list(self._choose_spans(ready))
        for batch in self._cut(spans):
            self._run(batch)
        self.sweep()

    def read(self, span: Span, ids: Ids[int]) -> Tensor:
        """Bring the `ids` of one span into its row at once; the logits after each, (T, V) on the CPU."""
        logits = self._compute([span], ids, range(len(ids))).cpu()
        self._rows.take_up(span, ids)
        return logits

    def _admit(self) -> None:
        """Give rows to those that wait, first come, first served."""
        for sequence in list(self._waiting):
            if self._rows.should_wait(sequence):
                continue
            if not self._rows.place(sequence):
                if not self._running:
                    sequence.fail(self._rows.describe_shortage(sequence.longest))
                return
            self._waiting.remove(sequence)
            self._running.append(sequence)
            if not sequence.reads_prompt:  # all of it was there, and the logits after it
                logits = self._rows.find_logits(sequence)
                assert logits is not None
                self._answer(sequence, 0, logits[None].cpu())

    def _choose_spans(self, ready: list[Job]) -> Iterator[tuple[Job, Span]]:
        """The next tokens of those that decode, then of prompts while the budget lasts."""
        chunk = self._rows.cache.prefill_chunk
        decoding = [each for each in ready if isinstance(each, Sequence) and not each.reads_prompt]
        # Beside a prompt a pass is bound by arithmetic, and a guess costs as much as a token of it.
        widest = self._drafting.widest if self._drafting and len(decoding) == len(ready) else 0
        for answer in decoding:
            answer.guess(min(chunk, widest // len(decoding)), len(decoding))
            yield answer, _next_span(answer, chunk)
        left = min(chunk, _CHUNK_BESIDE) if decoding else chunk
        for sequence in ready:
            if sequence.reads_prompt and left > 0:
                # Where rounding depends on it, a prompt is cut as it would be alone.
                span = _next_span(sequence, left if self._batching is Batching.EXACT else chunk)
                left -= span.n
                yield sequence, span

    def _cut(self, spans: list[tuple[Job, Span]]) -> Iterator[list[tuple[Job, Span]]]:
        """The batches that `spans` make: one, or as many as keep each sequence's rounding its own."""
        if self._batching is not Batching.APART:
            if spans:
                yield spans
            return
        few: list[tuple[Job, Span]] = []
        n_few = 0
        for sequence, span in spans:
            if span.n > FEW:
                yield [(sequence, span)]
                continue
            if n_few + span.n > FEW:
                yield few
                few, n_few = [], 0
            few, n_few = [*few, (sequence, span)], n_few + span.n
        if few:
            yield few

    def _run(self, batch: list[tuple[Job, Span]]) -> None:
        """One pass, and what comes of it for each sequence."""
        ids: list[int] = []
        wanted: list[int] = []  # rows of the batch behind which nothing is left to read but guesses
        for sequence, span in batch:
            n_before = len(ids) - span.first
            ids += _list_ids(sequence, span)
            wanted += [n_before + position for position in _list_wanted(sequence, span)]
        logits = self._compute([span for _, span in batch], ids, wanted)
        chosen = self._choose_together(batch, logits) if self._chooses_there else {}
        for n, (sequence, span) in enumerate(batch):
            n_wanted = len(_list_wanted(sequence, span))
            own, logits = logits[:n_wanted], logits[n_wanted:]
            self._rows.take_up(span, _list_ids(sequence, span))
            if span.end == sequence.n_prompt:
                held = self._rows[span.row]
                held.prompt, held.logits = sequence.prompt, own[-1].clone()  # a view would keep all
            n_known = min(span.end, len(sequence.ids)) - span.first
            self._answer(sequence, n_known, chosen[n] if n in chosen else own.cpu() if n_wanted else None)
            if sequence.n_read < span.end:
                self._rows.rewind(span.row, sequence.n_read)

    def _choose_together(self, batch: list[tuple[Job, Span]], logits: Tensor) -> dict[int, Chosen | M7bError]:
        """The next tokens of sequences of `batch`, by their places there, or why there are none.

        Left out is who looks at logits: judgements, checks of guesses, and what is forced.
        """
        wishes: dict[int, Wish] = {}
        rows: list[int] = []
        end = 0
        for n, (sequence, span) in enumerate(batch):
            n_wanted = len(_list_wanted(sequence, span))
            end += n_wanted
            if n_wanted == 1 and (wish := _find_wish(sequence)):
                wishes[n] = wish
                rows.append(end - 1)
        if not wishes:
            return {}
        with memory_errors():
            asked = logits if len(rows) == len(logits) else logits[torch.tensor(rows, device=logits.device)]
            return dict(zip(wishes, choose_together(asked, list(wishes.values())), strict=True))

    def _answer(self, sequence: Job, n: int, answer: Tensor | Chosen | M7bError | None) -> None:
        """Let `sequence` go on. A fault of its own ends it, not the others."""
        try:
            match answer:
                case M7bError():
                    sequence.fail(answer)
                case Chosen():
                    assert isinstance(sequence, Sequence)
                    sequence.follow(n, answer)
                case _:
                    sequence.advance(n, answer)
        except M7bError as error:
            sequence.fail(error)

    @torch.inference_mode()
    def _compute(self, spans: list[Span], ids: Ids[int], wanted: Ids[int]) -> Tensor:
        positions = [position for span in spans for position in range(span.first, span.end)]
        cache = self._rows.cache
        with memory_errors():
            batch = Batch(
                torch.tensor(ids, device=self._device),
                torch.tensor(positions, device=self._device),
                tuple(spans),
                torch.tensor(wanted, dtype=torch.int64, device=self._device),
            )
            cache.reserve(spans)
            logits = self._forward(batch, cache)
        cache.commit(spans)
        return logits


def _next_span(sequence: Job, most: int) -> Span:
    """The next tokens of `sequence` that are known or guessed, at most `most` and all of one kind."""
    assert sequence.row is not None
    end = sequence.n_prompt if sequence.reads_prompt else len(sequence.ids) + len(sequence.draft)
    n = min(most, end - sequence.n_read)
    return Span(sequence.row, sequence.n_read, n, sequence.reads_prompt, sequence.adapter)


def _find_wish(sequence: Job) -> Wish | None:
    """What the next token of `sequence` is to be chosen by, where it may be chosen beside others."""
    try:
        return sequence.make_wish() if isinstance(sequence, Sequence) else None
    except M7bError:
        return None  # it meets the same fault where it chooses itself


def _list_ids(sequence: Job, span: Span) -> list[int]:
    """The tokens of `span`, guesses included."""
    known = sequence.ids[span.first : span.end]
    return known + sequence.draft[: span.n - len(known)]


def _list_wanted(sequence: Job, span: Span) -> range:
    """The positions in `span` behind which `sequence` chooses or judges."""
    return range(max(sequence.n_given, span.first), span.end)
