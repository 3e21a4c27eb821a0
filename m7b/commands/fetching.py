"""How a download shows on stderr: bars on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Generator
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from m7b.commands.loading import drained
from m7b.hub import DownloadPlan, FileProgress
from m7b.render import Status, note, printable

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
        """What `running` comes to; what it tells is shown meanwhile."""
        return drained(running, self._show)

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
