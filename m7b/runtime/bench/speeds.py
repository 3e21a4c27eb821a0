"""From a model and a sweep to a report: load the engines, run them in turn, put figures together."""

from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from time import perf_counter

from m7b.bench import PeerName
from m7b.bench.figures import Measurement, Ratio, Report, compare_in_turn, summarize
from m7b.bench.runs import Runner, Sample, Sweep, run_in_turn
from m7b.errors import ContextOverflow
from m7b.runtime import machine
from m7b.runtime.bench.measure import load_runner, peak_rss, reset_peak_rss
from m7b.runtime.bench.peers import open_peer
from m7b.runtime.bench.subject import Subject, make_task
from m7b.runtime.placement import AUTO, check_device, check_memory


@dataclass(frozen=True, slots=True)
class Hindrance:
    """What makes an engine slower here than it could be, for the user."""

    text: str


def measure_speeds(
    subject: Subject, sweep: Sweep, peer: PeerName | None
) -> Generator[str | Hindrance, None, Report]:
    """Run `sweep` on our engine, and on `peer`, which `check_peer` passed, in turn; tells what goes on.

    Raises:
        ContextOverflow: the sweep is deeper than the model's context.
        OutOfResources: memory or disk do not suffice.
    """
    _check_context(subject, sweep)
    if subject.options.device != AUTO:
        check_device(subject.options.device)
    before = yield from _read_bandwidth(subject)
    reset_peak_rss()
    started = perf_counter()
    ours = yield from load_runner(subject.name, subject.checkpoint, subject.options, subject.mix)
    load_s = perf_counter() - started
    most = max(sweep.batches)
    if most > 1 and subject.options.device == "cpu":
        check_memory((most - 1) * ours.reads.kv_bytes, f"the cache of {most} sequences")
    with ExitStack() as stack:
        runners: list[Runner] = [ours]
        if peer:
            yield f"loading the model into {peer}…"
            runners.append(
                stack.enter_context(open_peer(peer, make_task(subject, sweep.ctx_size, max(sweep.batches))))
            )
            yield from (Hindrance(runner.note) for runner in runners if runner.note)
        samples = []
        for work in sweep.works:
            samples.append((yield from run_in_turn(runners, work, sweep)))
        peak = peak_rss()
    after = yield from _read_bandwidth(subject)
    results, ratios = _summarize(sweep, runners, samples, max(before, after))
    return Report(
        machine=machine.as_json(machine.describe_machine()),
        model=subject.about | {"weights": runners[0].reads.weights, "ctx_size": sweep.ctx_size},
        load_s=load_s,
        read_gbs=(before, after),
        peak_rss_bytes=peak,
        results=results,
        ratios=ratios,
    )


def _summarize(
    sweep: Sweep,
    runners: Sequence[Runner],
    samples: Sequence[Sequence[tuple[Sample, ...]]],
    limit_gbs: float,
) -> tuple[tuple[Measurement, ...], tuple[Ratio, ...]]:
    """Figures by work and engine, and ratios to the first engine. `samples` are by work and repetition."""
    results: list[Measurement] = []
    ratios: list[Ratio] = []
    for work, repetitions in zip(sweep.works, samples, strict=True):
        by_runner = list(zip(runners, zip(*repetitions, strict=True), strict=True))
        (_, ours), *peers = by_runner
        results += [summarize(one.name, work, found, one.reads, limit_gbs) for one, found in by_runner]
        ratios += [compare_in_turn(one.name, work, ours, theirs) for one, theirs in peers]
    return tuple(results), tuple(ratios)


def _read_bandwidth(subject: Subject) -> Generator[str, None, float]:
    yield "measuring how fast memory is read…"
    device = subject.options.device
    if device.startswith(("cuda", "mps")):
        return machine.copy_bandwidth(device)
    return machine.read_bandwidth(subject.options.threads)


def _check_context(subject: Subject, sweep: Sweep) -> None:
    """Refuse to run deeper than the model could."""
    longest = subject.config.max_seq_len
    if sweep.ctx_size > longest:
        raise ContextOverflow(
            f"a depth of {max(sweep.depths)} and the tokens after it take a context of {sweep.ctx_size}, "
            f"{subject.name} has {longest}",
            hint="lower -d, -p or -n",
        )
