"""What a terminal makes of a prompt when its size changes. Knows rows and columns; knows no keys."""

import os
from collections.abc import Mapping

from prompt_toolkit import PromptSession
from prompt_toolkit.data_structures import Point
from prompt_toolkit.layout.screen import Char, Screen

_CUTTING = ("linux", "screen", "vt")  # beginnings of TERM
# Save the cursor, erase its line, then all lines below, and restore it: in one go, from the first cell of the
# screen, tmux would keep what it erases in its history.
_ERASE_DOWN = "\x1b7\x1b[K\x1b[E\x1b[J\x1b8"


def follow_reflow(session: PromptSession[str]) -> None:
    """Have `session` find its first row again when the terminal has wrapped anew what is drawn.

    prompt-toolkit goes up as many rows as it has drawn above the cursor; where the terminal has cut these in
    two, that is too few, and a copy of the prompt stays above.
    """
    app, is_rewrapped = session.app, rewraps(os.environ)
    renderer, output = app.renderer, app.output

    def on_resize() -> None:
        screen, cursor = renderer.last_rendered_screen, renderer._cursor_pos
        rows = cursor.y
        if screen and is_rewrapped:
            rows = count_rows_above(screen, cursor, output.get_size().columns)
        output.cursor_backward(cursor.x)
        output.cursor_up(rows)
        output.write_raw(_ERASE_DOWN)
        output.reset_attributes()
        output.enable_autowrap()
        renderer.reset(leave_alternate_screen=False)
        app._request_absolute_cursor_position()
        app._redraw()

    app._on_resize = on_resize  # type: ignore[method-assign] # which it hands to the signal when it runs


def rewraps(environ: Mapping[str, str]) -> bool:
    """Whether the terminal wraps lines anew when its width changes. xterm, screen and consoles cut them."""
    if environ.get("TMUX"):
        return True
    return "XTERM_VERSION" not in environ and not environ.get("TERM", "").startswith(_CUTTING)


def count_rows_above(screen: Screen, cursor: Point, columns: int) -> int:
    """The rows above `cursor` that what is drawn on `screen` takes in a terminal of `columns`."""
    lengths = (_count_cells(screen.data_buffer[row]) for row in range(cursor.y))
    return sum(max(1, -(-length // columns)) for length in lengths) + cursor.x // columns


def _count_cells(row: Mapping[int, Char]) -> int:
    """The cells up to the last one that is no space."""
    return max((at + char.width for at, char in row.items() if char.char != " "), default=0)
