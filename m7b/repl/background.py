"""Whether the terminal is light or dark: ask it. Knows escape sequences; nothing about colours of ours."""

import os
import re
import select
import sys
import termios
import time
from collections.abc import Mapping

from prompt_toolkit.input import create_input
from prompt_toolkit.input.typeahead import store_typeahead
from prompt_toolkit.input.vt100_parser import Vt100Parser
from prompt_toolkit.key_binding import KeyPress

from m7b.render import Theme, has_colours

_PATIENCE_S = 0.5
_QUESTION = b"\x1b]11;?\x1b\\\x1b[c"  # every terminal answers the second one, so nobody waits for the first
_COLOUR = re.compile(
    rb"\x1b\]11;rgba?:([\da-f]{1,4})/([\da-f]{1,4})/([\da-f]{1,4})[^\x07\x1b]*(?:\x07|\x1b\\)", re.I
)
_END = re.compile(rb"\x1b\[\?[\d;]*c")
_SILENT = ("dumb", "linux")
_LIGHT_INDICES = ("7", "15")


def resolve_theme(theme: Theme) -> Theme:
    """Resolve `auto` to light or dark: by what the terminal says, else COLORFGBG; else dark."""
    if theme is not Theme.AUTO:
        return theme
    return (_ask_terminal() if _can_ask() else None) or read_colorfgbg(os.environ) or Theme.DARK


def read_colorfgbg(environ: Mapping[str, str]) -> Theme | None:
    """Read the variable in which some terminals tell their colours: `0;15` is black on white."""
    index = environ.get("COLORFGBG", "").rpartition(";")[2]
    if not index.isdecimal():
        return None
    return Theme.LIGHT if index in _LIGHT_INDICES else Theme.DARK


def read_answer(data: bytes) -> tuple[Theme | None, bytes]:
    """Read what the terminal answered: light or dark, and what was typed meanwhile."""
    found = _COLOUR.search(data)
    typed = _END.sub(b"", _COLOUR.sub(b"", data))
    if found is None:
        return None, typed
    red, green, blue = (int(part, 16) / (16 ** len(part) - 1) for part in found.groups())
    is_light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
    return (Theme.LIGHT if is_light else Theme.DARK), typed


def _can_ask() -> bool:
    """Whether somebody is there to answer: a terminal in front, that has colours."""
    if not (has_colours() and sys.stdin and sys.stdin.isatty() and sys.stdout and sys.stdout.isatty()):
        return False
    if os.environ.get("TERM") in _SILENT or os.tcgetpgrp(sys.stdin.fileno()) != os.getpgrp():
        return False
    return not select.select([sys.stdin], [], [], 0)[0]  # or the answer would stand behind what was typed


def _ask_terminal() -> Theme | None:
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    silent = termios.tcgetattr(fd)
    silent[0] &= ~termios.ICRNL
    silent[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(fd, termios.TCSANOW, silent)
    try:
        os.write(sys.stdout.fileno(), _QUESTION)
        data, end = b"", time.monotonic() + _PATIENCE_S
        while not _END.search(data) and select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
            if not (piece := os.read(fd, 1024)):
                break
            data += piece
    finally:
        termios.tcsetattr(fd, termios.TCSANOW, before)
    theme, typed = read_answer(data)
    _give_back(typed.decode("utf-8", "replace"))
    return theme


def _give_back(typed: str) -> None:
    """Let the next prompt have what was typed."""
    presses: list[KeyPress] = []
    parser = Vt100Parser(presses.append)
    parser.feed_and_flush(typed)
    if presses:
        store_typeahead(create_input(), presses)
