"""The clipboard, through the terminal. Knows terminals and what runs inside them; nothing about chats."""

import base64
import os
import subprocess

from m7b.errors import UsageError

_PIECE = 512  # bytes that GNU screen passes on at once
_PATIENCE_S = 5.0
_DEAF = ("dumb", "linux", "vt100", "vt220", "")


def format_copy(text: str) -> str:
    """Format the control sequence that asks the terminal to put `text` on the clipboard (OSC 52).

    GNU screen keeps to itself what it does not know, so it gets pieces to pass on.

    Raises:
        UsageError: the terminal has no clipboard.
    """
    term = os.environ.get("TERM", "")
    if term in _DEAF:
        raise UsageError(
            f"a terminal of the kind {term or 'unknown'!r} has no clipboard", hint="use /export FILE"
        )
    data = base64.b64encode(text.encode("utf-8", "replace")).decode("ascii")
    sequence = f"\x1b]52;c;{data}\x07"
    if not _is_in_screen():
        return sequence
    pieces = (sequence[at : at + _PIECE] for at in range(0, len(sequence), _PIECE))
    return "".join(f"\x1bP{piece}\x1b\\" for piece in pieces)


def copy_in_tmux(text: str) -> bool:
    """Put `text` into tmux's buffer, and through it on the clipboard; false where there is no tmux.

    By default tmux takes the sequence from itself alone, and not from the programs inside it.
    """
    if not os.environ.get("TMUX") or _is_in_screen():
        return False
    try:
        subprocess.run(
            ["tmux", "load-buffer", "-w", "-"],
            input=text.encode("utf-8", "replace"),
            check=True,
            capture_output=True,
            timeout=_PATIENCE_S,
        )
    except (OSError, subprocess.SubprocessError):  # no tmux in the path, or one before 3.2
        return False
    return True


def _is_in_screen() -> bool:
    """Whether GNU screen is the nearest: inside it, tmux sets TERM to a name of its own, or TERM_PROGRAM."""
    is_tmux = os.environ.get("TERM_PROGRAM") == "tmux" or os.environ.get("TERM", "").startswith("tmux")
    return bool(os.environ.get("STY")) and not is_tmux
