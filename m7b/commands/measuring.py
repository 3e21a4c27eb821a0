"""From the options of `m7b bench` to a report: load, run in turn, put figures together."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from m7b.bench import PeerName
from m7b.bench.results import Ratio, Reads, Report, Row, Sample, Work, ratio_of, row_of
from m7b.commands.shared.loading import show_loading
from m7b.commands.subject import Choice, about, engine_options, open_subject
from m7b.errors import ContextOverflow
from m7b.models import ModelFiles
from m7b.progress import run_with_progress
from m7b.render import Status, note

if TYPE_CHECKING:
    from m7b.runtime.measure import Runner


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


def measure(choice: Choice, plan: Plan, peer: PeerName | None, status: Status) -> Report:
    """Run `plan` on our engine, and on `peer` in turn with it.

    Raises:
        ContextOverflow: the plan is deeper than the model's context.
        UsageError: the peer is missing, or cannot do the work.
    """
    from m7b.runtime.loader import load_engine
    from m7b.runtime.machine import as_json, describe_machine
    from m7b.runtime.measure import EngineRunner, peak_rss, reset_peak_rss
    from m7b.runtime.peers import check_peer

    if peer:
        check_peer(peer, choice.quant)
    opened = open_subject(choice)
    _check_context(opened, plan)
    options = engine_options(choice, plan.ctx_size)
    before = _bandwidth(choice, status)
    reset_peak_rss()
    started = perf_counter()
    engine = run_with_progress(load_engine(opened.checkpoint, options), show_loading(opened.name, status))
    load_s = perf_counter() - started
    with ExitStack() as stack:
        runners: list[Runner] = [EngineRunner(engine, choice.quant)]
        if peer:
            runners.append(stack.enter_context(_opened_peer(peer, opened, choice, plan, status)))
            _tell_notes(runners, status)
        samples = [list(_in_turn(runners, work, plan, status)) for work in plan.works]
        peak, reads = peak_rss(), [(runner.name, runner.reads) for runner in runners]
    after = _bandwidth(choice, status)
    rows, ratios = _figures(plan, reads, samples, max(before, after))
    return Report(
        machine=as_json(describe_machine()),
        model=about(opened, choice, reads[0][1].weights) | {"ctx_size": plan.ctx_size},
        load_s=load_s,
        read_gbs=(before, after),
        peak_rss_bytes=peak,
        results=rows,
        ratios=ratios,
    )


def _figures(
    plan: Plan,
    reads: Sequence[tuple[str, Reads]],
    samples: Sequence[Sequence[tuple[Sample, ...]]],
    limit_gbs: float,
) -> tuple[tuple[Row, ...], tuple[Ratio, ...]]:
    """Rows by depth and engine, and ratios to the first engine. `samples` are by depth and repetition."""
    rows: list[Row] = []
    ratios: list[Ratio] = []
    for work, found in zip(plan.works, samples, strict=True):
        ours, *theirs = zip(*found, strict=True)
        for (name, bytes_read), of_one in zip(reads, (ours, *theirs), strict=True):
            rows.append(row_of(name, work, of_one, bytes_read, limit_gbs))
        for (name, _), of_one in zip(reads[1:], theirs, strict=True):
            ratios.append(ratio_of(name, work, ours, of_one))
    return tuple(rows), tuple(ratios)


def _bandwidth(choice: Choice, status: Status) -> float:
    from m7b.runtime.machine import read_bandwidth

    status.show("measuring how fast memory is read…")
    return read_bandwidth(choice.threads)


def _tell_notes(runners: "Sequence[Runner]", status: Status) -> None:
    """Tell what hinders any of the engines."""
    for runner in runners:
        if runner.note:
            status.clear()
            note(runner.note)


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


def _opened_peer(peer: PeerName, opened: ModelFiles, choice: Choice, plan: Plan, status: Status) -> Any:
    """A context in which the peer has the same model."""
    from m7b.runtime.loader import run_dtype
    from m7b.runtime.peers import Task, open_peer

    status.show(f"loading the model into {peer}…")
    dtype = run_dtype(opened.checkpoint.dtype, choice.dtype)
    task = Task(opened.checkpoint, opened.config, dtype, choice.quant, plan.ctx_size, choice.random_weights)
    return open_peer(peer, task)


def _check_context(opened: ModelFiles, plan: Plan) -> None:
    """Refuse to run deeper than the model could."""
    longest = opened.config.max_seq_len
    if plan.ctx_size > longest:
        raise ContextOverflow(
            f"a depth of {max(plan.depths)} and the tokens after it take a context of {plan.ctx_size}, "
            f"{opened.name} has {longest}",
            hint="lower -d, -p or -n",
        )
