"""`m7b bench`: how fast a model runs on this machine, against its memory, a peer or an earlier run."""

from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from m7b.bench import PeerName, ReportFormat
from m7b.commands.shared.options import (
    AdapterOption,
    DeviceOption,
    DTypeOption,
    KvTypeOption,
    ModelOption,
    QuantOption,
    ThreadsOption,
    VariantName,
    VariantOption,
    WindowOption,
    integer,
    n_tokens,
    number,
    read_adapters,
)
from m7b.errors import UsageError
from m7b.generation import Draft
from m7b.progress import run_with_progress
from m7b.render import Output, Status, note

if TYPE_CHECKING:
    from m7b.bench.claims import ClaimsReport
    from m7b.bench.comparison import EarlierRun
    from m7b.bench.drafts import DraftsReport
    from m7b.bench.figures import Report
    from m7b.bench.runs import Sweep
    from m7b.commands.shared.bench_choice import BenchChoice
    from m7b.models import ModelFiles
    from m7b.runtime.bench.speeds import Hindrance
    from m7b.runtime.bench.subject import Subject

Result = TypeVar("Result")

_MOST_SEQUENCES = 256
"""As many as llama.cpp takes."""

_CLAIMS_VARIANT = "base-v0.1"
"""Whose claims are measured, where no model is named."""


def count(text: str) -> int:
    """A whole number, 0 included."""
    value = integer(text)
    if not 0 <= value <= 1 << 20:
        raise typer.BadParameter(f"{value} is not from 0 to {1 << 20}")
    return value


def batch_size(text: str) -> int:
    """A number of sequences, at least one."""
    value = integer(text)
    if not 1 <= value <= _MOST_SEQUENCES:
        raise typer.BadParameter(f"{value} is not from 1 to {_MOST_SEQUENCES}")
    return value


def share(text: str) -> float:
    """A positive number."""
    value = number(text)
    if not 0 < value < 1000:
        raise typer.BadParameter(f"{text} is not between 0 and 1000")
    return value


def bench(
    prompt: Annotated[
        int,
        typer.Option("-p", "--prompt-tokens", parser=count, metavar="N", help="Tokens of the prompt, or 0."),
    ] = 512,
    tokens: Annotated[
        int, typer.Option("-n", "--decode-tokens", parser=count, metavar="N", help="Tokens to decode, or 0.")
    ] = 128,
    depths: Annotated[
        str, typer.Option("-d", "--depths", metavar="N,N", help="Tokens already in the cache, a list.")
    ] = "0,4096",
    batches: Annotated[
        str,
        typer.Option("--batch", metavar="N,N", help="Sequences that run together, a list."),
    ] = "1",
    repetitions: Annotated[
        int,
        typer.Option("-r", "--repetitions", parser=n_tokens, metavar="N", help="Repetitions at each depth."),
    ] = 5,
    warmup: Annotated[
        int, typer.Option("--warmup", parser=count, metavar="N", help="Repetitions before those that count.")
    ] = 1,
    variant: VariantOption = None,
    model: ModelOption = None,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights", help="Run the model's shape with random weights, without its files."
        ),
    ] = False,
    quant: QuantOption = None,
    kv_type: KvTypeOption = None,
    dtype: DTypeOption = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    window: WindowOption = None,
    adapter: AdapterOption = None,
    format: Annotated[
        ReportFormat, typer.Option("-o", "--format", help="How to write the figures.")
    ] = ReportFormat.TABLE,
    compare: Annotated[
        Path | None,
        typer.Option(
            "--compare",
            metavar="OLD.json",
            help="An earlier run (-o json) to tell ratios to.",
            show_default=False,
        ),
    ] = None,
    fail_under: Annotated[
        float | None,
        typer.Option(
            "--fail-under",
            parser=share,
            metavar="RATIO",
            help="Exit with 8 where a ratio of --compare is less.",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", help="Draw speed against depth as .png or .svg.", show_default=False
        ),
    ] = None,
    peer: Annotated[
        PeerName | None,
        typer.Option("--peer", help="Another program to run the same work, in turn.", show_default=False),
    ] = None,
    claims: Annotated[
        bool, typer.Option("--claims", help="Measure grouped queries and the window, each with and without.")
    ] = False,
    drafts: Annotated[
        bool,
        typer.Option(
            "--drafts", help="Decode texts that repeat themselves, with --draft lookup and without."
        ),
    ] = False,
) -> None:
    """Measure how fast a model reads prompts and decodes here, and how near that is to what memory allows.

    Examples:

      m7b bench -p 64 -n 16 -d 0,512 -r 2

      m7b bench --random-weights -p 0 -n 8 -d 0 -o json > before.json
    """
    from m7b.bench.comparison import check_speed, read_run
    from m7b.bench.formats import render
    from m7b.bench.plot import check_plot, draw
    from m7b.bench.runs import Sweep
    from m7b.commands.shared.bench_choice import BenchChoice

    sizes = _parse_list("--batch", batches, batch_size, "--batch 1,2,4,8,16")
    if claims and (compare or plot or peer or sizes != (1,)):
        raise UsageError("--claims runs alone", hint="leave out --compare, --plot, --peer and --batch")
    if (claims or drafts) and device != "cpu":
        raise UsageError(
            f"--{'claims' if claims else 'drafts'} are measured on the CPU", hint="leave out --device"
        )
    if drafts and (claims or compare or plot or sizes != (1,)):
        raise UsageError("--drafts runs alone", hint="leave out --claims, --compare, --plot and --batch")
    if fail_under is not None and not compare:
        raise UsageError("--fail-under needs --compare", hint="name the earlier run: --compare OLD.json")
    if not tokens and (claims or not prompt):
        raise UsageError("there is nothing to measure", hint="raise -n")
    earlier = read_run(compare) if compare else None
    if plot:
        check_plot(plot)
    if adapter and (claims or peer):
        raise UsageError("--adapter goes with neither --claims nor --peer", hint="leave it out")
    adapters = read_adapters(adapter)
    choice = BenchChoice(
        variant, model, random_weights, quant, dtype, threads, window, kv_type, adapters, device
    )
    sweep = Sweep(
        prompt, tokens, _parse_list("--depths", depths, count, "-d 0,4096"), repetitions, warmup, sizes
    )
    if claims:
        Output().write(render(_measure_claims(choice, sweep), format))
        return
    if drafts:
        Output().write(render(_measure_drafts(choice, repetitions, peer), format))
        return
    report = _measure_speeds(choice, sweep, peer)
    if earlier:
        report = _compare(report, earlier)
    Output().write(render(report, format))
    if plot:
        draw(plot, report, earlier)
    if fail_under is not None:
        check_speed(report.changes, fail_under)


def _measure_speeds(choice: "BenchChoice", sweep: "Sweep", peer: PeerName | None) -> "Report":
    from m7b.commands.shared.bench_choice import open_subject
    from m7b.runtime.bench.peers import check_peer
    from m7b.runtime.bench.speeds import measure_speeds

    if peer:
        check_peer(peer, choice.quant, choice.device)
    subject = _describe_subject(open_subject(choice), choice, sweep.ctx_size)
    return _run_with_status(measure_speeds(subject, sweep, peer))


def _measure_claims(choice: "BenchChoice", sweep: "Sweep") -> "ClaimsReport":
    """Those of the variant that the paper describes, where no model is named."""
    from m7b.commands.shared.bench_choice import open_subject
    from m7b.runtime.bench.claims import measure_claims

    if not choice.variant and not choice.model:
        choice = replace(choice, variant=VariantName(_CLAIMS_VARIANT))
    choice = replace(choice, random_weights=True)
    opened = open_subject(replace(choice, window=None))
    subject = _describe_subject(opened, choice, opened.config.max_seq_len)
    return _run_with_status(measure_claims(subject, sweep.decode_tokens, sweep.repetitions))


def _measure_drafts(choice: "BenchChoice", repetitions: int, peer: PeerName | None) -> "DraftsReport":
    from m7b.commands.shared.bench_choice import open_subject, read_texts
    from m7b.runtime.bench.drafts import measure_drafts
    from m7b.runtime.bench.peers import check_peer

    if peer:
        check_peer(peer, choice.quant)
    texts = read_texts(choice)
    longest = max(len(text.prompt + text.answer) for text in texts)
    subject = _describe_subject(open_subject(choice), choice, longest)
    subject = replace(subject, options=replace(subject.options, draft=Draft.LOOKUP))
    return _run_with_status(measure_drafts(subject, texts, repetitions, peer))


def _describe_subject(opened: "ModelFiles", choice: "BenchChoice", ctx_size: int) -> "Subject":
    from m7b.commands.shared.bench_choice import describe_model, engine_options
    from m7b.models import join_names, mix_adapters, open_adapters
    from m7b.runtime.bench.subject import Subject

    adapters = open_adapters(choice.adapters, opened.config)
    return Subject(
        join_names(opened.name, adapters),
        opened.checkpoint,
        opened.config,
        engine_options(choice, ctx_size),
        choice.random_weights,
        describe_model(opened, choice, weights="")
        | ({"adapters": [each.label for each in adapters]} if adapters else {}),
        mix_adapters(adapters),
    )


def _run_with_status(measuring: "Generator[str | Hindrance, None, Result]") -> Result:
    """Run a measurement to its end, with what goes on shown on a terminal; returns its report."""
    status = Status()

    def show(event: "str | Hindrance") -> None:
        if isinstance(event, str):
            status.show(event)
        else:
            status.clear()
            note(event.text)

    try:
        return run_with_progress(measuring, show)
    finally:
        status.clear()


def _compare(report: "Report", earlier: "EarlierRun") -> "Report":
    """The report with how speeds have changed; warns where the runs are not of one kind."""
    from m7b.bench.comparison import compute_changes

    for what, now, then in (
        ("machine", report.machine["cpu"], earlier.cpu),
        ("model", report.model["name"], earlier.model),
    ):
        if then and now != then:
            note(f"the earlier run is of another {what}: {then}, now {now}")
    return replace(report, changes=compute_changes(report.results, earlier))


def _parse_list(option: str, text: str, parse: Callable[[str], int], example: str) -> tuple[int, ...]:
    """The numbers in a list of them, each once, in order.

    Raises:
        UsageError: it is none.
    """
    try:
        return tuple(sorted({parse(number) for number in text.split(",")}))
    except typer.BadParameter as error:
        raise UsageError(f"{option}: {error.message}", hint=f"write them as in {example}") from None
