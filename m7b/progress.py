"""Work that tells how far it is: generators of progress that return a result. Knows nothing about screens."""

from collections.abc import Callable, Generator
from typing import TypeVar

Progress = TypeVar("Progress")
Result = TypeVar("Result")


def run_with_progress(
    steps: Generator[Progress, None, Result], report: Callable[[Progress], object]
) -> Result:
    """Runs the generator to its end, calling `report(progress)` for each step; returns its result."""
    while True:
        try:
            progress = next(steps)
        except StopIteration as done:
            result: Result = done.value
            return result
        report(progress)
