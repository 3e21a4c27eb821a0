"""The current row of the terminal: final text, and behind it a tail that may still be replaced.

Knows rows, cells and escape sequences; moves the cursor only forward and to the start of the row. Knows
nothing of Markdown.
"""

import re
import unicodedata
from collections.abc import Iterable

from rich.cells import cell_len, get_character_cell_size, split_graphemes
from rich.console import COLOR_SYSTEMS, Console, RenderableType
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from m7b.errors import OutOfResources
from m7b.render import PipeClosed

_TAB = 8
_EMOJI_PARTS = re.compile("[\U0001f1e6-\U0001f1ff\U0001f3fb-\U0001f3ff]")


class TerminalRow:
    """Wraps final text and shows the tail. Only `update` writes, and all at once.

    The last column stays empty, because terminals differ in what they do there.
    """

    def __init__(self, console: Console, width: int) -> None:
        self._console = console
        self._colors = COLOR_SYSTEMS.get(console.color_system or "")
        self._width = width
        self._batch: list[str] = []
        self._column = 0  # cells of final text in this row
        self._hang = Text()  # the text that rows begin with after a wrap
        self._is_wrapped = False  # the row holds nothing but that
        self._is_vague = False  # terminals disagree on the cells of what stands in the row
        self._tail = ""
        self._tail_column = 0

    @property
    def limit(self) -> int:
        """The cells a row may take."""
        return max(1, self._width - 1)

    @property
    def is_empty(self) -> bool:
        """Whether nothing final stands in the row."""
        return self._column == 0

    def begin(self, marks: Text, hang: Text) -> None:
        """Begin a line with `marks`, its further rows with `hang`. Narrow terminals show less of both."""
        self._hang = hang
        if _count_cells(marks.plain) > self.limit // 2:
            marks = marks[len(marks) - len(marks.plain.lstrip()) :]
        if _count_cells(marks.plain) < self.limit:
            self._add(marks)
        else:
            self.put(marks)

    def put(self, text: Text) -> None:
        """Add final text; wraps it between words, at wide characters, and inside words that fit no row."""
        gap = Text()
        for piece in text.divide(_find_breaks(text.plain, self.limit - self._hang_cells)):
            if not piece.plain.strip(" "):
                gap = piece
                continue
            gap_cells = 0 if self._is_wrapped else len(gap)
            if not self._fits(gap_cells + _count_cells(piece.plain)):
                if not (self._is_wrapped or self.is_empty):
                    self._wrap()
                gap_cells = 0
            self._add(gap[:gap_cells])
            self._add(piece)
            self._is_wrapped = False
            gap = Text()

    def put_line(self, text: Text) -> None:
        """Add a final line without blanks at its end; the terminal wraps it."""
        text.rstrip()
        if _count_cells(text.plain.expandtabs(_TAB)) > self.limit:
            text.expand_tabs(_TAB)  # a tab does not wrap: the terminal would write over the row's last cell
        self._add(text)
        self.end_line()

    def put_block(self, block: RenderableType) -> None:
        """Add something that Rich renders in several rows."""
        options = self._console.options.update_width(self.limit)
        for line in self._console.render_lines(block, options, pad=False):
            self._batch.append(f"{self._render_ansi(line)}\n")

    def end_line(self) -> None:
        """End the line."""
        self._hang = Text()
        self._wrap()

    def resize(self, width: int) -> int:
        """Go on with another width.

        Where the terminal had to wrap the row, it cannot be rewritten: the tail on it becomes final.

        Returns:
            How many characters of the tail have become final.
        """
        if width == self._width:
            return 0
        self._width = width
        is_reflowed = max(self._column, self._tail_column + _count_cells(self._tail)) > self.limit
        if not is_reflowed:
            return 0
        committed, self._tail = len(self._tail), ""
        self._wrap()
        return committed

    def update(self, tail: str) -> None:
        """Write what was added, and show `tail` behind it as far as the row has room.

        Raises:
            PipeClosed: the reader of the pipe has gone.
            OutOfResources: the terminal cannot be written.
        """
        tail = "" if self._is_vague else _clip(tail, self.limit - self._column)
        shown = "".join(self._batch) + tail
        if not shown.startswith(self._tail):
            forward = f"\x1b[{self._tail_column}C" if self._tail_column else ""
            self._write(f"\r{forward}\x1b[K{shown}")
        elif shown != self._tail:
            self._write(shown[len(self._tail) :])
        self._batch.clear()
        self._tail, self._tail_column = tail, self._column

    @property
    def _hang_cells(self) -> int:
        n = _count_cells(self._hang.plain)
        return n if n <= self.limit // 2 else 0

    def _fits(self, n_cells: int) -> bool:
        return self._column + n_cells <= self.limit

    def _wrap(self) -> None:
        self._batch.append("\n")
        self._column, self._is_vague = 0, False
        self._add(self._hang[: self._hang_cells])
        self._is_wrapped = bool(self._hang_cells)

    def _add(self, text: Text) -> None:
        if text:
            self._batch.append(self._render_ansi(text.render(self._console)))
            self._column += _count_cells(text.plain)
            self._is_vague = self._is_vague or _is_vague(text.plain)

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


def _find_breaks(plain: str, widest: int) -> list[int]:
    """Find where `plain` may be wrapped: "ab 中文" at 2, 3 and 4."""
    offsets: list[int] = []
    for word in re.finditer(" +|[^ ]+", plain):
        offsets.append(word.start())
        is_long = _count_cells(word[0]) > widest
        if is_long or not word[0].isascii():
            for start, end, n_cells in split_graphemes(word[0])[0]:
                if is_long or n_cells > 1:
                    offsets += (word.start() + start, word.start() + end)
    return sorted(set(offsets) - {0, len(plain)})


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
    if text.isascii():
        return False
    return any(unicodedata.category(c)[0] == "M" or unicodedata.category(c) == "Cf" for c in text) or bool(
        _EMOJI_PARTS.search(text)
    )
