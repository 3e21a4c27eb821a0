"""`m7b verify`: whether checkpoints are still what was downloaded."""

from typing import Annotated

import typer

from m7b import hub
from m7b.commands.shared.fetching import FetchScreen
from m7b.commands.shared.options import JsonOption, complete_name
from m7b.errors import DamagedCheckpoint
from m7b.render import Output, note


def verify(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A checkpoint that m7b list shows; all of them if not given.",
            autocompletion=complete_name,
            show_default=False,
        ),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Fetch damaged files again, and only those.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read checkpoints whole and compare them with their checksums.

    Examples:

      m7b verify demo

      m7b verify --repair
    """
    from m7b.hub.sources import recreate_source

    records = hub.require(name) if name else hub.shelf.list_records()
    output, found = Output(), []
    for record in records:
        damaged = _check(record)
        if damaged and repair:
            note(f"{record.name}: fetching {', '.join(file.name for file in damaged)} again")
            with FetchScreen() as screen:
                record = screen.run(hub.repair(record, recreate_source(record)))
            damaged = _check(record)
        found.append((record, damaged))
    if as_json:
        entries = [
            {"name": record.name, "format": record.format, "damaged": [file.name for file in damaged]}
            for record, damaged in found
        ]
        output.write_json(entries)
    else:
        for record, damaged in found:
            verdict = f"damaged: {', '.join(file.name for file in damaged)}" if damaged else "sound"
            output.write(f"{record.name} ({record.format}, {record.n_bytes / 1e9:.2f} GB): {verdict}\n")
    bad = [record.name for record, damaged in found if damaged]
    if bad:
        raise DamagedCheckpoint(
            f"{', '.join(bad)}: not what was downloaded", hint="fetch it again with: m7b verify --repair"
        )


def _check(record: hub.CheckpointRecord) -> list[hub.File]:
    with FetchScreen() as screen:
        damaged = screen.run(hub.verify(record))
    if not damaged:
        hub.shelf.mark_verified(record)
    return damaged
