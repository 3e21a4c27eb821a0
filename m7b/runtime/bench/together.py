"""Times several sequences that one engine works on together. Knows no model and no cache."""

import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from m7b.generation import PromptProgress, SamplingParams, SequenceHandle, Step


class BatchingEngine(Protocol):
    """What an engine offers that works on several sequences at once."""

    def submit(self, ids: Sequence[int], params: SamplingParams, *, is_exact: bool) -> SequenceHandle:
        """Queue `ids` to be continued beside all else; not `is_exact`, they may go on from any row."""
        ...

    def step(self) -> None:
        """Do the next batch of work for all sequences."""
        ...


def prefill_together(engine: BatchingEngine, prompts: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Read all `prompts`: seconds until each is read, and until each has its first token."""
    started = time.perf_counter()
    read = chosen = 0.0
    for by_sequence in _run(engine, prompts, 1):
        now = time.perf_counter() - started
        events = [event for events in by_sequence for event in events]
        read = now if any(isinstance(event, PromptProgress) for event in events) else read
        chosen = now if any(isinstance(event, Step) for event in events) else chosen
    return read, chosen


def decode_together(
    engine: BatchingEngine, prompts: Sequence[Sequence[int]], n_tokens: int
) -> tuple[float, ...]:
    """Continue all `prompts` by `n_tokens`: for each token, the seconds until every sequence had it.

    Tokens that come at once share the time: of 2 tokens after 4 seconds, each took 2.
    """
    counts, seconds = [0] * len(prompts), list[float]()
    before = time.perf_counter()
    for by_sequence in _run(engine, prompts, n_tokens):
        counts = [
            count + sum(isinstance(event, Step) for event in events)
            for count, events in zip(counts, by_sequence, strict=True)
        ]
        n_new = min(counts) - len(seconds)
        if n_new:
            now = time.perf_counter()
            seconds += [(now - before) / n_new] * n_new
            before = now
    return tuple(seconds)


def _run(
    engine: BatchingEngine, prompts: Sequence[Sequence[int]], n_tokens: int
) -> Iterator[list[Sequence[PromptProgress | Step]]]:
    """Continue all `prompts` by `n_tokens`; the events of each after every step."""
    params = SamplingParams(max_tokens=n_tokens, temperature=0)
    sequences = [engine.submit(ids, params, is_exact=False) for ids in prompts]
    while not all(sequence.is_done for sequence in sequences):
        engine.step()
        yield [sequence.take() for sequence in sequences]
