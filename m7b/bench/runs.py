"""What is run and in which order: work, repetitions, engines in turn. Knows engines by a protocol alone."""

import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Work:
    """What one repetition does at each depth: a prompt of `prompt_tokens`, then `decode_tokens`, one by one.

    `depth` tokens are in the cache before either.
    """

    prompt_tokens: int
    decode_tokens: int
    depth: int


@dataclass(frozen=True, slots=True)
class Sample:
    """The seconds of one repetition.

    `prefill_s` is the prompt alone and `ttft_s` goes on to the first token; None where there was no
    prompt. `step_s` has one forward pass and its choice of a token for each token decoded.
    """

    prefill_s: float | None
    ttft_s: float | None
    step_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Reads:
    """The bytes behind the speed of an engine: all its cache takes, and what a token must read.

    `weights` says how the weights are kept. `kv_bytes_per_token` is what one position takes, and
    `window` how many of them a token sees, None for all.
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

    def prepare(self, depth: int) -> None:
        """Bring the cache to `depth` tokens; this is not timed."""
        ...

    def prefill(self, n: int) -> tuple[float, float]:
        """Read `n` tokens: seconds to the last logits, and to the token chosen by them."""
        ...

    def decode(self, n: int) -> tuple[float, ...]:
        """Read a token and choose the next by argmax, `n` times: the seconds of each."""
        ...


@dataclass(frozen=True, slots=True)
class Sweep:
    """All that one run measures: each depth `warmup` times for nothing, then `repetitions` that count."""

    prompt_tokens: int
    decode_tokens: int
    depths: tuple[int, ...]
    repetitions: int
    warmup: int

    @property
    def works(self) -> list[Work]:
        """The work at each depth."""
        return [Work(self.prompt_tokens, self.decode_tokens, depth) for depth in self.depths]

    @property
    def ctx_size(self) -> int:
        """Tokens of context that the deepest work takes, the token chosen at its end included."""
        return max(self.depths) + max(self.prompt_tokens, self.decode_tokens) + 1


def run_in_turn(
    runners: Sequence[Runner], work: Work, sweep: Sweep
) -> Generator[str, None, list[tuple[Sample, ...]]]:
    """Repeat `work`, each repetition by one runner after the other; tells which one goes on.

    Returns the samples of each repetition that counts, one a runner.
    """
    samples = []
    for n in range(-sweep.warmup, sweep.repetitions):
        count = f"repetition {n + 1} of {sweep.repetitions}" if n >= 0 else "warming up"
        in_turn = []
        for runner in runners:
            yield f"{runner.name} at a depth of {work.depth}: {count}"
            in_turn.append(repeat(runner, work))
        if n >= 0:
            samples.append(tuple(in_turn))
    return samples


def repeat(runner: Runner, work: Work) -> Sample:
    """One repetition of `work`: the prompt and the decoded tokens each start at the depth."""
    prefill_s = ttft_s = None
    if work.prompt_tokens:
        runner.prepare(work.depth)
        prefill_s, ttft_s = runner.prefill(work.prompt_tokens)
    if not work.decode_tokens:
        return Sample(prefill_s, ttft_s, ())
    runner.prepare(work.depth)
    return Sample(prefill_s, ttft_s, runner.decode(work.decode_tokens))


def time_steps(steps: Iterable[object]) -> tuple[float, ...]:
    """The seconds that each of `steps` took to come."""
    before, seconds = time.perf_counter(), []
    for _ in steps:
        now = time.perf_counter()
        seconds.append(now - before)
        before = now
    return tuple(seconds)
