"""Terminal modes while no prompt is open. Knows nothing else."""

import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from prompt_toolkit.input.vt100 import cooked_mode


@contextmanager
def silence_keys() -> Iterator[None]:
    """Switch the echo off between prompts; typed keys wait for the next prompt.

    The terminal does not translate such keys, so Enter is still Enter when the prompt reads it.
    """
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    input_flags, output_flags, control_flags, local_flags, *rest = before
    local_flags &= ~(termios.ECHO | termios.ICANON)
    local_flags |= termios.NOFLSH  # else Ctrl-C would discard output that the terminal has not drawn yet
    silent = [input_flags & ~termios.ICRNL, output_flags, control_flags, local_flags, *rest]

    def silence(*_: object) -> None:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, silent)

    # After Ctrl+Z the shell has set modes of its own.
    on_return = signal.signal(signal.SIGCONT, silence)
    silence()
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, on_return)
        with suppress(termios.error):  # the terminal has gone
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@contextmanager
def restore_keys() -> Iterator[None]:
    """Set the modes that other programs expect, while one of them has the terminal."""
    with cooked_mode(sys.stdin.fileno()):
        yield
