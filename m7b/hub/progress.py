"""The progress that a download reports, and how long it keeps trying. Knows no source and no screen.

Long work is a generator: it yields its progress and returns its result.
"""

import random
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from m7b.errors import CheckpointNotFound

Result = TypeVar("Result")
Reported = TypeVar("Reported")


@dataclass(frozen=True, slots=True)
class FileProgress:
    """`done` of `total` bytes are here. `file` is the one in work; `note` is a remark for the user."""

    file: str
    done: int
    total: int
    note: str = ""


@dataclass(slots=True)
class Retries:
    """How often to try again, and how long to wait before: from `first_s` seconds, doubled up to `longest_s`.

    Whoever receives bytes calls `reset`, so a bad line only slows a download and a dead line ends it.
    `trouble` is the reason of the last failure, empty while bytes come.
    """

    limit: int = 8
    first_s: float = 0.25
    longest_s: float = 30.0
    failures: int = field(default=0, init=False)
    trouble: str = field(default="", init=False)

    def reset(self) -> None:
        """Start counting again: some bytes have come."""
        self.failures, self.trouble = 0, ""

    def count_failure(self, why: str, retry_after_s: float | None = None) -> float:
        """Count a failure and return the seconds to wait before the next try.

        Args:
            why: the reason of the failure.
            retry_after_s: the seconds that the server asks for, if it asks.

        Raises:
            CheckpointNotFound: this was more than `limit` failures in a row.
        """
        self.failures, self.trouble = self.failures + 1, why
        if self.failures > self.limit:
            raise CheckpointNotFound(
                f"the download failed {self.failures} times in a row: {why}",
                hint="check the network and start the same command again: it goes on where it stopped",
            )
        if retry_after_s is not None:
            return min(retry_after_s, 10 * self.longest_s)
        return min(self.longest_s, self.first_s * 2.0 ** (self.failures - 1)) * random.uniform(0.75, 1.25)


def pause(seconds: float, why: str) -> Iterator[FileProgress]:
    """Wait some seconds; yields how many are left, four times a second."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        yield FileProgress("", 0, 0, f"{why}: again in {left:.0f} s")
        time.sleep(min(left, 0.25))


def report_file(
    running: Generator[int, None, Result], file: str, done: int, total: int, note: str = ""
) -> Generator[FileProgress, None, Result]:
    """Run `running` to its end and return its result; yields its byte counts as the progress of one file.

    `done` of `total` bytes belong to the files before this one.
    """
    return map_progress(running, lambda n: FileProgress(file, done + n, total, note))


def map_progress(
    running: Generator[Reported, None, Result], convert: Callable[[Reported], FileProgress]
) -> Generator[FileProgress, None, Result]:
    """Run `running` to its end and return its result; yields `convert(value)` for each value it yields."""
    while True:
        try:
            reported = next(running)
        except StopIteration as stop:
            result: Result = stop.value
            return result
        yield convert(reported)
