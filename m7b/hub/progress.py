"""What a download tells while it runs, and how long it keeps trying. Knows no source and no screen."""

import random
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from m7b.errors import CheckpointNotFound

Result = TypeVar("Result")
Told = TypeVar("Told")


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` bytes are here; `file` is at hand, and `note` says what else there is to know."""

    file: str
    done: int
    total: int
    note: str = ""


@dataclass(slots=True)
class Retries:
    """How long to wait after a failure: twice as long each time, from `first_s` up to `longest_s` seconds.

    Progress sets it back, so that a bad line is slow and only a dead one ends a download. `trouble` is why it
    has failed last, empty while bytes come.
    """

    limit: int = 8
    first_s: float = 0.25
    longest_s: float = 30.0
    failures: int = field(default=0, init=False)
    trouble: str = field(default="", init=False)

    def succeeded(self) -> None:
        """Some bytes have come."""
        self.failures, self.trouble = 0, ""

    def delay_s(self, why: str, retry_after_s: float | None = None) -> float:
        """Seconds to wait after a failure; `retry_after_s` are what the server asks for.

        Raises:
            CheckpointNotFound: it has failed `limit` times in a row, last for the reason `why`.
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


def pause(seconds: float, why: str) -> Iterator[Progress]:
    """Wait, and tell how long it will still take."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        yield Progress("", 0, 0, f"{why}: again in {left:.0f} s")
        time.sleep(min(left, 0.25))


def within(
    running: Generator[int, None, Result], file: str, done: int, total: int, note: str = ""
) -> Generator[Progress, None, Result]:
    """What `running` comes to; the bytes it tells are those of one file, with `done` bytes before it."""
    return retold(running, lambda n: Progress(file, done + n, total, note))


def retold(
    running: Generator[Told, None, Result], tell: Callable[[Told], Progress]
) -> Generator[Progress, None, Result]:
    """What `running` comes to; what it tells is told in other words."""
    while True:
        try:
            told = next(running)
        except StopIteration as stop:
            result: Result = stop.value
            return result
        yield tell(told)
