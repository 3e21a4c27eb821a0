"""What the terminal does with keys while no prompt is open. Knows terminal modes only."""

import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager

from prompt_toolkit.input.vt100 import cooked_mode


@contextmanager
def silence_keys() -> Iterator[None]:
    """Keep what is typed from showing up between the prompts; it waits for the next one.

    The terminal hands such keys on as they are, so that Enter still is Enter when they are read.
    """
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    input_flags, output_flags, control_flags, local_flags, *rest = before
    local_flags &= ~(termios.ECHO | termios.ICANON)
    local_flags |= termios.NOFLSH  # else Ctrl-C would take back what was written and not yet drawn
    silent = [input_flags & ~termios.ICRNL, output_flags, control_flags, local_flags, *rest]

    def silence(*_: object) -> None:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, silent)

    on_return = signal.signal(signal.SIGCONT, silence)  # from Ctrl+Z, where the shell set modes of its own
    silence()
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, on_return)
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@contextmanager
def restore_keys() -> Iterator[None]:
    """The modes that other programs expect, for as long as one of them has the terminal."""
    with cooked_mode(sys.stdin.fileno()):
        yield
