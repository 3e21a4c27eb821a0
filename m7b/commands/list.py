"""`m7b list`: the checkpoints on this machine."""

import time
from dataclasses import asdict
from typing import Any

from m7b import hub
from m7b.commands.shared.options import JsonOption
from m7b.render import Output, note

_HEADINGS = ("name", "format", "GB", "source", "verified", "used", "where")


def list_(as_json: JsonOption = False) -> None:
    """List the checkpoints on this machine.

    Examples:

      m7b list

      m7b list --json
    """
    records = hub.shelf.list_records()
    output = Output()
    if as_json:
        output.write_json([_entry(record) for record in records])
        return
    if not records:
        note("nothing was downloaded yet: see m7b download --help")
        return
    rows = [_HEADINGS, *(_row(record) for record in records)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADINGS) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        output.write("  ".join([*cells, row[-1]]) + "\n")


def _entry(record: hub.CheckpointRecord) -> dict[str, Any]:
    return {**asdict(record), "n_bytes": record.n_bytes, "used": hub.shelf.read_last_use(record)}


def _row(record: hub.CheckpointRecord) -> tuple[str, ...]:
    used = hub.shelf.read_last_use(record)
    size = f"{record.n_bytes / 1e9:.2f}"
    return (record.name, record.format, size, record.source, _day(record.verified), _day(used), record.path)


def _day(seconds: float | None) -> str:
    return "never" if seconds is None else time.strftime("%Y-%m-%d", time.localtime(seconds))
