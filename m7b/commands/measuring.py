"""From the options of `m7b bench` to a report: load, run in turn, put figures together."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from m7b.bench.results import Report, Sample, Work, ratio_of, row_of
from m7b.commands.loading import chosen_variant, drained, open_chosen
from m7b.commands.options import DType, VariantName
from m7b.errors import ContextOverflow
from m7b.render import Status, note
from m7b.variants import VARIANTS

if TYPE_CHECKING:
    from m7b.runtime.checkpoints import Checkpoint
    from m7b.runtime.config import ModelConfig
    from m7b.runtime.engine import Engine
    from m7b.runtime.loader import EngineOptions
    from m7b.runtime.measure import Runner
    from m7b.runtime.peers import PeerName


@dataclass(frozen=True, slots=True)
class Choice:
    """Which model is measured and how it runs, in the words of the options."""

    variant: VariantName | None
    model: Path | None
    random_weights: bool
    quant: str | None
    dtype: DType | None
    threads: int | None
    window: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: each depth `warmup` times for nothing and `repetitions` times for the figures."""

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


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that was looked at: `config` is the one that runs, the window of the options in it."""

    name: str
    checkpoint: "Checkpoint"
    config: "ModelConfig"


def measure(choice: Choice, plan: Plan, peer: str | None, status: Status) -> Report:
    """Run `plan` on our engine, and on `peer` in turn with it.

    Raises:
        ContextOverflow: the plan is deeper than the model's context.
        UsageError: the peer is missing, or cannot do the work.
    """
    from m7b.runtime.loader import load_engine
    from m7b.runtime.machine import as_json, describe_machine, read_bandwidth
    from m7b.runtime.measure import EngineRunner, peak_rss, reset_peak_rss
    from m7b.runtime.peers import PeerName, check_peer

    named = PeerName(peer) if peer else None
    if named:
        check_peer(named, choice.quant)
    opened = open_model(choice)
    _check_context(opened, plan)
    options = engine_options(choice, plan.ctx_size)
    status.show("measuring how fast memory is read…")
    before = read_bandwidth(choice.threads)
    reset_peak_rss()
    started = perf_counter()
    engine: Engine = drained(load_engine(opened.checkpoint, options), opened.name, status)  # type: ignore[assignment]
    load_s = perf_counter() - started
    with ExitStack() as stack:
        runners: list[Runner] = [EngineRunner(engine, choice.quant)]
        if named:
            runners.append(stack.enter_context(_opened_peer(named, opened, choice, plan, status)))
        samples = [list(_in_turn(runners, work, plan, status)) for work in plan.works]
        peak = peak_rss()
    status.show("measuring how fast memory is read…")
    after = read_bandwidth(choice.threads)
    measured = list(zip(plan.works, samples, strict=True))
    return Report(
        machine=as_json(describe_machine()),
        model=about(opened, choice, runners[0].reads.weights) | {"ctx_size": plan.ctx_size},
        load_s=load_s,
        read_gbs=(before, after),
        peak_rss_bytes=peak,
        results=tuple(
            row_of(runner.name, work, [sample[n] for sample in found], runner.reads, max(before, after))
            for work, found in measured
            for n, runner in enumerate(runners)
        ),
        ratios=tuple(
            ratio_of(peer.name, work, *zip(*found, strict=True))
            for work, found in measured
            for peer in runners[1:]
        ),
    )


def open_model(choice: Choice) -> Opened:
    """The chosen model, not yet loaded; with random weights a variant needs no files."""
    from m7b.runtime.checkpoints.random import random_checkpoint
    from m7b.runtime.config import ModelConfig

    name = chosen_variant(choice.variant, choice.model)
    if choice.random_weights and name:
        checkpoint = random_checkpoint(name, ModelConfig.of_variant(VARIANTS[name]))
    else:
        name, checkpoint = open_chosen(choice.variant, choice.model, window_given=choice.window is not None)
        if choice.random_weights:
            checkpoint = random_checkpoint(name, checkpoint.config)
        elif checkpoint.note:
            note(checkpoint.note)
    config = checkpoint.config
    if choice.window is not None:
        config = replace(config, sliding_window=choice.window or None)
    return Opened(name, checkpoint, config)


def _in_turn(
    runners: "Sequence[Runner]", work: Work, plan: Plan, status: Status
) -> Iterator[tuple[Sample, ...]]:
    """The samples of each repetition, one a runner; those of the warmup are left out."""
    from m7b.runtime.measure import repeat

    for n in range(-plan.warmup, plan.repetitions):
        count = f"repetition {n + 1} of {plan.repetitions}" if n >= 0 else "warming up"
        samples = []
        for runner in runners:
            status.show(f"{runner.name} at a depth of {work.depth}: {count}")
            samples.append(repeat(runner, work))
        if n >= 0:
            yield tuple(samples)


def _opened_peer(peer: "PeerName", opened: Opened, choice: Choice, plan: Plan, status: Status) -> Any:
    """A context in which the peer has the same model."""
    from m7b.runtime.loader import run_dtype
    from m7b.runtime.peers import Task, open_peer

    status.show(f"loading the model into {peer}…")
    dtype = run_dtype(opened.checkpoint.dtype, choice.dtype)
    task = Task(opened.checkpoint, opened.config, dtype, choice.quant, plan.ctx_size, choice.random_weights)
    return open_peer(peer, task)


def engine_options(choice: Choice, ctx_size: int) -> "EngineOptions":
    """How our engine is to run the choice."""
    from m7b.runtime.loader import EngineOptions

    return EngineOptions(
        dtype=choice.dtype,
        window=choice.window,
        ctx_size=ctx_size or None,
        threads=choice.threads,
        quant=choice.quant,
    )


def _check_context(opened: Opened, plan: Plan) -> None:
    """Refuse to run deeper than the model could."""
    longest = opened.config.max_seq_len
    if plan.ctx_size > longest:
        raise ContextOverflow(
            f"a depth of {max(plan.depths)} and the tokens after it take a context of {plan.ctx_size}, "
            f"{opened.name} has {longest}",
            hint="lower -d, -p or -n",
        )


def about(opened: Opened, choice: Choice, weights: str) -> dict[str, Any]:
    """What a report tells of the model."""
    config = opened.config
    return {
        "name": opened.name,
        "random_weights": choice.random_weights,
        "parameters": config.n_params,
        "n_layers": config.n_layers,
        "weights": str(weights),
        "quant": choice.quant and str(choice.quant),
        "window": config.sliding_window,
    }
