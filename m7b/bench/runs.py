"""What is run and in which order: work, repetitions, engines in turn. Knows engines by a protocol alone."""

import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Work:
    """What one repetition does at each depth: a prompt of `prompt_tokens`, then `decode_tokens`, one by one.

    `n_sequences` do so together, and `depth` tokens of each are in the cache before either.
    """

    prompt_tokens: int
    decode_tokens: int
    depth: int
    n_sequences: int = 1


@dataclass(frozen=True, slots=True)
class Sample:
    """The seconds of one repetition.

    `prefill_s` is the prompts alone and `ttft_s` goes on to the first token of each; None where there were no
    prompts. `step_s` has, for each token decoded, the seconds until every sequence had it.
    """

    prefill_s: float | None
    ttft_s: float | None
    step_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Reads:
    """The bytes behind the speed of an engine: what its cache takes, and what a token must read.

    `weights` says how the weights are kept. `kv_bytes` is the cache of one sequence,
    `kv_bytes_per_token` what one position takes, and `window` how many of them a token sees, None for all.
    """

    weights: str
    weight_bytes: int
    kv_bytes: int
    kv_bytes_per_token: int
    window: int | None

    def kv_read_bytes(self, work: Work) -> int:
        """Bytes of keys and values that a token decoded in `work` reads on average, its own included.

        depth 2, 3 tokens, window 4: they see 3, 4 and 4 positions.
        """
        n = work.decode_tokens
        seen = sum(min(work.depth + i + 1, self.window or work.depth + i + 1) for i in range(n))
        return round(seen / n * self.kv_bytes_per_token) if n else 0


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """A prompt and the answer that is given to it, in ids."""

    name: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """The `seconds` of an answer behind its first token.

    So many tokens were `drafted` for it, and so many of those were `taken`; None where nobody counts them.
    """

    seconds: float
    drafted: int | None = None
    taken: int | None = None


class Runner(Protocol):
    """An engine that can be timed, ours or a peer."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def note(self) -> str:
        """What hinders it, for the user; empty where all is well."""
        ...

    @property
    def reads(self) -> Reads:
        """The bytes that it holds and reads."""
        ...

    def prepare(self, depth: int, n_sequences: int = 1) -> None:
        """Bring the caches of `n_sequences` to `depth` tokens each; this is not timed.

        What follows is done by all of these sequences together.
        """
        ...

    def prefill(self, n: int) -> tuple[float, float]:
        """Read `n` tokens a sequence: seconds to the last logits, and to the tokens chosen by them."""
        ...

    def decode(self, n: int) -> tuple[float, ...]:
        """Read a token a sequence and choose the next by argmax, `n` times: the seconds of each time."""
        ...

    def answer(self, text: KnownAnswer, *, drafts: bool) -> Answered:
        """Decode a known answer behind its prompt, with guesses looked up in the text so far or without."""
        ...


@dataclass(frozen=True, slots=True)
class Sweep:
    """All that one run measures, in each size of a batch and at each depth.

    `warmup` repetitions are for nothing, then come `repetitions` that count.
    """

    prompt_tokens: int
    decode_tokens: int
    depths: tuple[int, ...]
    repetitions: int
    warmup: int
    batches: tuple[int, ...] = (1,)

    @property
    def works(self) -> list[Work]:
        """The work in each batch at each depth."""
        return [
            Work(self.prompt_tokens, self.decode_tokens, depth, n_sequences)
            for n_sequences in self.batches
            for depth in self.depths
        ]

    @property
    def ctx_size(self) -> int:
        """Tokens of context that the deepest work takes a sequence, the token chosen at its end included."""
        return max(self.depths) + max(self.prompt_tokens, self.decode_tokens) + 1


def run_in_turn(
    runners: Sequence[Runner], work: Work, sweep: Sweep
) -> Generator[str, None, list[tuple[Sample, ...]]]:
    """Repeat `work`, each repetition by one runner after the other; tells which one goes on.

    Returns the samples of each repetition that counts, one a runner.
    """
    samples, batch = [], f", {work.n_sequences} sequences" if work.n_sequences > 1 else ""
    for n in range(-sweep.warmup, sweep.repetitions):
        count = f"repetition {n + 1} of {sweep.repetitions}" if n >= 0 else "warming up"
        in_turn = []
        for runner in runners:
            yield f"{runner.name}{batch} at a depth of {work.depth}: {count}"
            in_turn.append(repeat(runner, work))
        if n >= 0:
            samples.append(tuple(in_turn))
    return samples


def repeat(runner: Runner, work: Work) -> Sample:
    """One repetition of `work`: prompts and decoded tokens each start at the depth."""
    prefill_s = ttft_s = None
    if work.prompt_tokens:
        runner.prepare(work.depth, work.n_sequences)
        prefill_s, ttft_s = runner.prefill(work.prompt_tokens)
    if not work.decode_tokens:
        return Sample(prefill_s, ttft_s, ())
    runner.prepare(work.depth, work.n_sequences)
    return Sample(prefill_s, ttft_s, runner.decode(work.decode_tokens))


def time_steps(steps: Iterable[object]) -> tuple[float, ...]:
    """The seconds that each of `steps` took to come."""
    before, seconds = time.perf_counter(), []
    for _ in steps:
        now = time.perf_counter()
        seconds.append(now - before)
        before = now
    return tuple(seconds)
