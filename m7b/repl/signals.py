"""What Ctrl-C does in a block: nothing, stop it, or wait until it ends; and SIGTERM. Knows signals only."""

import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from m7b.errors import ExitCode

T = TypeVar("T")

_TERMINATIONS = (signal.SIGTERM, signal.SIGHUP)


class Terminated(SystemExit):
    """The process was asked to end, or its terminal has gone."""


@contextmanager
def raise_on_termination() -> Iterator[None]:
    """Let the first SIGTERM or SIGHUP raise Terminated in the block; further ones do nothing.

    So all that is open is closed as at any other end: the answer is saved, and the terminal gets its modes.
    """
    is_open = True

    def stop(number: int, _: object) -> None:
        nonlocal is_open
        was_open, is_open = is_open, False
        if was_open:
            raise Terminated(ExitCode(128 + number))

    # Who has a signal ignored, as nohup does, means it.
    wanted = [number for number in _TERMINATIONS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ignore_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C do nothing in the block."""
    with _call_on_ctrl_c(lambda *_: None):
        yield


@contextmanager
def raise_on_ctrl_c() -> Iterator[None]:
    """Let the first Ctrl-C raise KeyboardInterrupt in the block; further ones do nothing."""
    is_open = True

    def stop(*_: object) -> None:
        nonlocal is_open
        was_open, is_open = is_open, False
        if was_open:
            raise KeyboardInterrupt

    with _call_on_ctrl_c(stop):
        yield
        is_open = False


@contextmanager
def delay_ctrl_c() -> Iterator[None]:
    """Delay Ctrl-C, SIGTERM and SIGHUP until the block ends: for work that must not be half done."""
    caught: list[int] = []
    numbers: tuple[int, ...] = (signal.SIGINT, *_TERMINATIONS)
    before = {number: signal.signal(number, lambda n, _: caught.append(n)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in dict.fromkeys(caught):
        signal.raise_signal(number)


def stop_on_ctrl_c(events: Iterator[T]) -> Generator[T, None, None]:
    """Yield `events` until the first Ctrl-C.

    Ctrl-C interrupts the wait for the next event, but never what the consumer does with one. An event that
    was just about to come is lost.
    """
    is_waiting = has_come = False

    def stop(*_: object) -> None:
        nonlocal has_come
        is_first, has_come = not has_come, True
        if is_first and is_waiting:
            raise KeyboardInterrupt

    with _call_on_ctrl_c(stop):
        try:
            while True:
                is_waiting = True
                if has_come:
                    return
                event = next(events)
                is_waiting = False
                yield event
        except (StopIteration, KeyboardInterrupt):
            return
        finally:
            is_waiting = False
            events.close()  # type: ignore[attr-defined]


@contextmanager
def _call_on_ctrl_c(act: Callable[..., None]) -> Iterator[Any]:
    """Let Ctrl-C call `act` in the block; gives the handler that was set before."""
    before = signal.signal(signal.SIGINT, act)
    try:
        yield before
    finally:
        signal.signal(signal.SIGINT, before)
