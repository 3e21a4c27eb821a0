"""`m7b bench`: how fast a model runs on this machine, against its memory, a peer or an earlier run."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m7b.bench import Format, PeerName
from m7b.commands.shared.options import (
    DTypeOption,
    ModelOption,
    QuantOption,
    ThreadsOption,
    VariantOption,
    WindowOption,
    integer,
    n_tokens,
    number,
)
from m7b.errors import UsageError
from m7b.render import Output, Status, note

if TYPE_CHECKING:
    from m7b.bench.compare import OldRun
    from m7b.bench.results import Report


def count(text: str) -> int:
    """A whole number, 0 included."""
    value = integer(text)
    if not 0 <= value <= 1 << 20:
        raise typer.BadParameter(f"{value} is not from 0 to {1 << 20}")
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
    dtype: DTypeOption = None,
    threads: ThreadsOption = None,
    window: WindowOption = None,
    format: Annotated[
        Format, typer.Option("-o", "--format", help="How to write the figures.")
    ] = Format.TABLE,
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
) -> None:
    """Measure how fast a model reads prompts and decodes here, and how near that is to what memory allows.

    Examples:

      m7b bench -p 64 -n 16 -d 0,512 -r 2

      m7b bench --random-weights -p 0 -n 8 -d 0 -o json > before.json
    """
    from m7b.bench.compare import changes, check_speed, read_run
    from m7b.bench.formats import render
    from m7b.bench.plot import check_plot, draw
    from m7b.bench.results import Report
    from m7b.commands.claiming import measure_claims
    from m7b.commands.measuring import Plan, measure
    from m7b.commands.subject import Choice

    if claims and (compare or plot or peer):
        raise UsageError("--claims runs alone", hint="leave out --compare, --plot and --peer")
    if fail_under is not None and not compare:
        raise UsageError("--fail-under needs --compare", hint="name the earlier run: --compare OLD.json")
    if not tokens and (claims or not prompt):
        raise UsageError("there is nothing to measure", hint="raise -n")
    old = read_run(compare) if compare else None
    if plot:
        check_plot(plot)
    choice = Choice(variant, model, random_weights, quant, dtype, threads, window)
    plan = Plan(prompt, tokens, _depths(depths), repetitions, warmup)
    status = Status()
    try:
        report = measure_claims(choice, plan, status) if claims else measure(choice, plan, peer, status)
    finally:
        status.clear()
    if old and isinstance(report, Report):
        report = replace(report, changes=changes(report.results, old))
        _tell_differences(report, old)
    Output().write(render(report, format))
    if plot and isinstance(report, Report):
        draw(plot, report, old)
    if fail_under is not None and isinstance(report, Report):
        check_speed(report.changes, fail_under)


def _depths(text: str) -> tuple[int, ...]:
    """The depths in a list of them, each once, in order.

    Raises:
        UsageError: it is none.
    """
    try:
        return tuple(sorted({count(depth) for depth in text.split(",")}))
    except typer.BadParameter as error:
        raise UsageError(f"--depths: {error.message}", hint="write them as in -d 0,4096") from None


def _tell_differences(report: "Report", old: "OldRun") -> None:
    """Warn where the runs compared are not of one kind."""
    for what, now, then in (
        ("machine", report.machine["cpu"], old.cpu),
        ("model", report.model["name"], old.model),
    ):
        if then and now != then:
            note(f"the earlier run is of another {what}: {then}, now {now}")
