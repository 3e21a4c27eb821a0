"""Speed against depth, drawn by matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m7b.bench.comparison import EarlierRun
from m7b.bench.figures import Report
from m7b.errors import OutOfResources, UsageError

SUFFIXES = (".png", ".svg")


def check_plot(file: Path) -> None:
    """Refuse a plot that could not be drawn, before anything is measured.

    Raises:
        UsageError: `file` is of another kind, or matplotlib is missing.
    """
    if file.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--plot {file}: neither .png nor .svg", hint="end its name in one of them")
    if not file.absolute().parent.is_dir():
        raise UsageError(f"--plot {file}: there is no such folder")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("--plot needs matplotlib", hint="pip install 'm7b[plot]'") from None


def draw(file: Path, report: Report, earlier: EarlierRun | None) -> None:
    """Draw the speeds of `report` into `file`, decoding above and prompts below, `earlier` ones dashed.

    Raises:
        OutOfResources: it cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    model = report.model
    window = f"window of {model['window']}" if model["window"] else "full attention"
    with mpl.rc_context({"svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(7, 6), layout="constrained")
        panels = figure.subplots(2, 1, sharex=True)
        for axes, phase in zip(panels, ("decode", "prefill"), strict=True):
            _draw_engines(axes, report.rows(), f"{phase}_tps", "")
            if earlier:
                _draw_engines(axes, earlier.rows, f"{phase}_tps", "before")
            axes.set_ylabel(f"{phase}, tokens per second")
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
            if axes.get_legend_handles_labels()[0]:
                axes.legend()
        panels[-1].set_xlabel("depth: tokens already in the cache")
        figure.suptitle(f"{model['name']}, {model['weights']}, {window}")
        try:
            figure.savefig(file, dpi=150)
        except OSError as error:
            raise OutOfResources(f"{file}: {error.strerror}") from None


def _draw_engines(axes: Any, rows: Sequence[Mapping[str, Any]], speed: str, when: str) -> None:
    """One line an engine and batch, with the sample's deviation where it is known."""
    for engine, batch in dict.fromkeys((row["engine"], row.get("batch", 1)) for row in rows):
        points = sorted(
            (row["depth"], row[speed], row.get(f"{speed}_stdev") or 0)
            for row in rows
            if (row["engine"], row.get("batch", 1)) == (engine, batch) and row[speed]
        )
        if points:
            depths, medians, spread = zip(*points, strict=True)
            style = {"linestyle": "--" if when else "-", "marker": "o", "capsize": 3}
            name = f"{engine} x {batch}" if batch > 1 else engine
            label = f"{name} {when}".strip()
            axes.errorbar(depths, medians, yerr=spread, label=label, **style)
