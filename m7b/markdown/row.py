"""The current row of the terminal: final text, and behind it a tail that may still be replaced.

Knows rows, cells and escape sequences; moves the cursor only forward and to the start of the row. Knows
nothing of Markdown.
"""

import re
import unicodedata
from collections.abc import Iterable

from rich.cells import cell_len, get_character_cell_size
from rich.console import COLOR_SYSTEMS, Console, RenderableType
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from m7b.errors import OutOfResources
from m7b.render import PipeClosed

_TAB = 8
_EMOJI_PARTS = re.compile("[\U0001f1e6-\U0001f1ff\U0001f3fb-\U0001f3ff]")


class TerminalRow:
    """Adds final text, which the terminal wraps, and shows the tail. Only `update` writes, and all at once.

    It sends no line ends but those of the text, so what is copied from the screen has no others either. The
    tail stays within its row, and leaves the last column empty: terminals differ in what they do there.
    """

    def __init__(self, console: Console, width: int) -> None:
        self._console = console
        self._colors = COLOR_SYSTEMS.get(console.color_system or "")
        self._width = max(1, width)
        self._batch: list[str] = []
        self._column = 0  # cells of final text in this row of the terminal; the next character may wrap
        self._n_cells = 0  # cells of final text in this line, over all its rows
        self._is_vague = False  # where in its row the line ends is unknown
        self._tail = ""
        self._tail_column = 0

    @property
    def limit(self) -> int:
        """The cells that a row of a table may take."""
        return max(1, self._width - 1)

    @property
    def is_empty(self) -> bool:
        """Whether nothing final stands in the line."""
        return self._n_cells == 0

    def put(self, text: Text) -> None:
        """Add final text; the terminal wraps it."""
        if text:
            self._batch.append(self._render_ansi(text.render(self._console)))
            self._advance(text.plain)

    def put_line(self, text: Text) -> None:
        """Add a final line without blanks at its end; the terminal wraps it."""
        text.rstrip()
        if _count_cells(text.plain.expandtabs(_TAB)) > self.limit:
            text.expand_tabs(_TAB)  # a tab does not wrap: the terminal would write over the row's last cell
        self.put(text)
        self.end_line()

    def put_block(self, block: RenderableType) -> None:
        """Add something that Rich renders in several rows."""
        options = self._console.options.update_width(self.limit)
        for line in self._console.render_lines(block, options, pad=False):
            self._batch.append(f"{self._render_ansi(line)}\n")

    def end_line(self) -> None:
        """End the line."""
        self._batch.append("\n")
        self._column, self._n_cells, self._is_vague = 0, 0, False

    def resize(self, width: int) -> int:
        """Go on with another width.

        A line of several rows cannot be rewritten then, as terminals differ in where they put its end: the
        tail on it becomes final.

        Returns:
            How many characters of the tail have become final.
        """
        n_tail = _count_cells(self._tail)
        is_one_row = self._n_cells + n_tail < min(width, self._width)
        if width == self._width or is_one_row or self._n_cells + n_tail == 0:
            self._width = max(1, width)
            return 0
        self._width = max(1, width)
        committed, self._tail = len(self._tail), ""
        self._n_cells += n_tail
        self._is_vague = True
        return committed

    def update(self, tail: str) -> None:
        """Write what was added, and show `tail` behind it as far as the row has room.

        Raises:
            PipeClosed: the reader of the pipe has gone.
            OutOfResources: the terminal cannot be written.
        """
        tail = "" if self._is_vague else _clip(tail, self._width - 1 - self._column)
        shown = "".join(self._batch) + tail
        if not shown.startswith(self._tail):
            forward = f"\x1b[{self._tail_column}C" if self._tail_column else ""
            self._write(f"\r{forward}\x1b[K{shown}")
        elif shown != self._tail:
            self._write(shown[len(self._tail) :])
        self._batch.clear()
        self._tail, self._tail_column = tail, self._column

    def _advance(self, plain: str) -> None:
        """Count the cells of `plain`: a character that does not fit the row begins the next one."""
        self._n_cells += _count_cells(plain)
        if plain.isascii():
            self._column = (self._column + len(plain) - 1) % self._width + 1
            return
        for n_cells in map(get_character_cell_size, plain):
            if self._column + n_cells > self._width:
                self._is_vague = self._is_vague or self._column < self._width  # not all wrap half a character
                self._column = 0
            self._column += n_cells
        self._is_vague = self._is_vague or _is_vague(plain)

    def _render_ansi(self, segments: Iterable[Segment]) -> str:
        return "".join(
            self._render_styled(segment.text, segment.style or Style.null()) for segment in segments
        )

    def _render_styled(self, text: str, style: Style) -> str:
        style = style.without_color if self._console.no_color else style
        return style.render(text, color_system=self._colors)

    def _write(self, text: str) -> None:
        try:
            self._console.file.write(text)
            self._console.file.flush()
        except BrokenPipeError:
            raise PipeClosed from None
        except OSError as error:
            raise OutOfResources(f"cannot write the answer: {error.strerror}") from None


def is_wide(char: str) -> bool:
    """Whether `char` takes two cells, so that a row may end before or after it."""
    return not char.isascii() and get_character_cell_size(char) == 2 and not _EMOJI_PARTS.match(char)


def _clip(tail: str, room: int) -> str:
    """Cut `tail` to what fits into `room` cells; a tab takes one cell."""
    room = max(0, room)  # a wide character may stand in a row that is too narrow for it
    tail = tail[:room].replace("\t", " ")
    while _count_cells(tail) > room:
        tail = tail[:-1]
    return tail.rstrip(" ")


def _count_cells(text: str) -> int:
    """Count the cells that `text` takes; where terminals disagree, the most that it may take."""
    if text.isascii():
        return len(text)
    apart = sum(2 if _EMOJI_PARTS.match(char) else get_character_cell_size(char) for char in text)
    return max(cell_len(text), apart)


def _is_vague(text: str) -> bool:
    """Whether terminals disagree on the cells of `text`: it has marks, joiners or emoji."""
    categories = {c: unicodedata.category(c) for c in text if not c.isascii()}
    return bool(_EMOJI_PARTS.search(text)) or any(
        kind[0] == "M" or kind == "Cf" or (kind == "So" and get_character_cell_size(c) == 2)
        for c, kind in categories.items()
    )
