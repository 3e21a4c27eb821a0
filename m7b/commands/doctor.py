"""`m7b doctor`: what this machine is, what runs on it and how fast it could."""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m7b import hub
from m7b.commands.shared.advice import Advice, advice_on, gib
from m7b.commands.shared.options import JsonOption, KvTypeOption
from m7b.paths import NoHome, data_folder
from m7b.render import Output, Status, has_colours
from m7b.variants import VARIANTS

if TYPE_CHECKING:
    from m7b.models.fit import Fit
    from m7b.runtime.machine import Machine

_COLUMNS = ("model", "weights", "GiB", "cache", "context", "tok/s", "at 4096")
_N_TEXT_COLUMNS = 2
_HEADING = """
What fits into free memory, with weights and cache in GiB, and upper limits of
tokens per second, the cache empty or at 4096: a token takes at least the time
to read its bytes, at the {:.1f} GB/s just measured.
"""


def doctor(kv_type: KvTypeOption = None, as_json: JsonOption = False) -> None:
    """Show what this machine is, what slows models down on it, which of them fit and how fast they could be.

    Examples:

      m7b doctor

      m7b doctor --json
    """
    from m7b.models.fit import list_fits
    from m7b.runtime.machine import describe_machine, read_bandwidth

    status = Status()
    status.show("measuring how fast memory is read…")
    try:
        machine, bandwidth = describe_machine(), read_bandwidth()
    finally:
        status.clear()
    models = list_fits(machine.memory_free_bytes, bandwidth, kv_type)
    report = _report(machine, bandwidth, models, advice_on(machine, models, os.environ))
    output = Output()
    if as_json:
        output.write_json(report)
    else:
        _show(report, output)


def _report(
    machine: "Machine", bandwidth: float, models: "Sequence[Fit]", found: Sequence[Advice]
) -> dict[str, Any]:
    from m7b.runtime.machine import as_json

    return {
        "machine": as_json(machine),
        "read_gbs": bandwidth,
        "data": _data(),
        "models": [asdict(model) for model in models],
        "warnings": [asdict(one) for one in found],
    }


def _data() -> dict[str, Any]:
    """The data folder, the disk that is free where it is or would be, and what was downloaded."""
    try:
        folder = data_folder()
    except NoHome:
        return {"folder": None, "free_bytes": 0, "downloaded": []}
    there = next(place for place in (folder, *folder.parents) if place.exists())
    found = ((name, hub.find_path(name)) for name in VARIANTS)
    return {
        "folder": str(folder),
        "free_bytes": shutil.disk_usage(there).free,
        "downloaded": [
            {"variant": name, "path": str(path), "bytes": _n_bytes(path)} for name, path in found if path
        ],
    }


def _n_bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _show(report: dict[str, Any], output: Output) -> None:
    """The report for people: a table of rich's on a terminal, columns in a pipe."""
    output.write("".join(f"{label:<16}{text}\n" for label, text in _facts(report)))
    for one in report["warnings"]:
        output.write("warning", emphasis=True)
        output.write(f"{'':<9}{one['problem']}\n{'':<16}{one['way_out']}\n")
    output.write(_HEADING.format(report["read_gbs"]))
    rows = [_row(model) for model in report["models"]]
    if output.is_terminal:
        _show_table(rows)
        return
    from m7b.bench.formats import Table, align

    output.write(align(Table(_COLUMNS, tuple(rows), _N_TEXT_COLUMNS)))


def _facts(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    machine, data = report["machine"], report["data"]
    others = f", {machine['efficiency_cores']} slower ones left alone" if machine["efficiency_cores"] else ""
    yield "cpu", f"{machine['cpu']}, {machine['cores']} cores{others} ({machine['logical_cores']} logical)"
    yield "instructions", " ".join(machine["cpu_features"]) or "none that matter"
    yield "threads", str(machine["threads"])
    yield (
        "kernels",
        f"{machine['kernels']}" + (f": {machine['kernels_missing']}" if machine["kernels_missing"] else ""),
    )
    yield "memory", f"{gib(machine['memory_bytes'])} GiB, {gib(machine['memory_free_bytes'])} free"
    yield "memory read", f"{report['read_gbs']:.1f} GB/s, with {machine['threads']} threads"
    for card in machine["accelerators"]:
        yield "accelerator", f"{card['device']}: {card['name']}, {gib(card['memory_bytes'])} GiB"
    if not machine["accelerators"]:
        yield "accelerator", "none that torch can use"
    yield "system", f"{machine['os']}, Python {machine['python']}"
    yield "libraries", ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    room = f"{data['folder']}, {gib(data['free_bytes'])} GiB of disk free"
    yield "data folder", room if data["folder"] else "none: set HOME or M7B_HOME"
    for one in data["downloaded"]:
        yield "downloaded", f"{one['variant']}: {one['path']}, {one['bytes']:,} bytes"
    if not data["downloaded"]:
        yield "downloaded", "nothing: m7b download --variant demo fetches the demo"


def _row(model: dict[str, Any]) -> tuple[str, ...]:
    limits = (f"{limit:.1f}" for limit in model["limit_tps"].values())
    sizes = gib(model["weight_bytes"]), gib(model["cache_bytes"])
    fitting, whole = model["ctx_size"], model["context"]
    context = f"{fitting} of {whole}" if fitting and fitting < whole else str(fitting or "none fits")
    return (", ".join(model["variants"]), model["format"], *sizes, context, *limits)


def _show_table(rows: Sequence[tuple[str, ...]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column, title in enumerate(_COLUMNS):
        table.add_column(title, justify="left" if column < _N_TEXT_COLUMNS else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, markup=False, no_color=not has_colours()).print(table)
