"""Markdown on a terminal while it is being written.

Knows which text is final and which may still change; knows nothing about models or conversations.
"""

import re
import sys
from collections.abc import Callable
from typing import TextIO, assert_never

from rich.console import Console
from rich.text import Text

from m7b.markdown import inline
from m7b.markdown.blocks import (
    HOLD,
    Block,
    Code,
    Context,
    Fence,
    Prose,
    Rule,
    TableRow,
    Verbatim,
    is_delimiter_row,
    parse_block,
)
from m7b.markdown.code import Highlighter
from m7b.markdown.row import TerminalRow, is_wide
from m7b.render import Output, PrintableStream, Theme, has_colours, printable

__all__ = ["MarkdownStream"]

_HEADINGS = ("", "bold underline", "bold", "bold italic", "bold italic", "bold italic", "bold italic")
_GLYPHS = "•│─…"
_ASCII_GLYPHS = "-|-~"
_RULE_CELLS = 40
_COLUMN_CELLS = 8  # a terminal that has less for each column shows a table as it is written


class MarkdownStream:
    """Prints Markdown line by line and word by word; it redraws only the last words of the current line.

    The cursor never moves up, so neither a long answer nor a resized terminal can garble what was printed.
    A line end in the text stays a line end, and the terminal wraps what is longer than a row. To show an old
    text, `write` it and `finish`.

    Args:
        stream: stdout unless another is given.
        plain: whether to write the text as it is; None does so where there is no terminal, or a dumb one.
        width: returns the columns of the terminal at this moment.
        theme: the colours, for a light or a dark background or none.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        plain: bool | None = None,
        width: Callable[[], int] | None = None,
        theme: Theme = Theme.DARK,
    ) -> None:
        self._output = Output(stream)
        self._is_light = theme is Theme.LIGHT
        no_color = theme is Theme.NONE or not has_colours()
        console = Console(file=stream or sys.stdout, no_color=no_color)
        is_capable = self._output.is_terminal and not (console.is_dumb_terminal or console.legacy_windows)
        self._is_plain = not is_capable if plain is None else plain
        self._encoding = console.encoding
        is_complete = _GLYPHS.encode(self._encoding, "replace").decode(self._encoding) == _GLYPHS
        self._bullet, self._bar, self._rule, self._more = tuple(_GLYPHS if is_complete else _ASCII_GLYPHS)
        self._width = width or (lambda: console.width)
        self._row = TerminalRow(console, self._width())
        self._reset()

    def resume(self, before: str) -> None:
        """Continue the text `before`, which is on the screen already and may end in an open code block."""
        if self._is_plain:
            return
        *lines, begun = printable(before).split("\n")
        for line in lines:
            self._skip_shown_line(line)
        if self._raw is not None:
            self._line, self._at = begun, len(begun)

    def write(self, text: str) -> None:
        """Show more of the text.

        Raises:
            PipeClosed: the reader of the pipe has gone.
            OutOfResources: the stream cannot be written.
        """
        if not text:
            return
        if self._is_plain:
            self._output.write(text)
            self._line = text[-1]
            return
        self._resize()
        for char in self._printable.feed(text).encode(self._encoding, "replace").decode(self._encoding):
            self._push(char)
        self._row.update(self._format_tail())

    def finish(self) -> None:
        """End the text, complete or cut off: print all of it, and end its last line."""
        if self._is_plain:
            if self._line not in ("", "\n"):
                self._output.write("\n")
        else:
            self._resize()
            if self._line.strip(" "):
                self._end_line()
            self._end_table()
            if not self._row.is_empty:
                self._row.end_line()
            self._row.update("")
        self._reset()

    def _reset(self) -> None:
        self._printable = PrintableStream()
        self._line = ""  # the current line, as it is written
        self._at = 0  # its characters that are final
        self._block: Block | None = None  # what it is, once that is known
        self._context = Context()  # what the lines before leave open
        self._raw: Fence | Verbatim | None = None  # the block that is open whose lines are shown as they are
        self._rows: list[str] = []  # the table that is waiting for its end
        self._highlighter = Highlighter("")
        self._is_started = False  # something was printed
        self._n_blank = 0  # empty lines that are due

    def _resize(self) -> None:
        n_final = self._row.resize(self._width())
        if not self._rows:
            self._at += n_final
        elif n_final:
            self._row.end_line()

    def _format_tail(self) -> str:
        n = len(self._rows)
        return f"{self._more} {n} row{'s' * (n > 1)}" if n else self._line[self._at :]

    def _push(self, char: str) -> None:
        if char == "\n":
            self._end_line()
            self._line, self._at, self._block = "", 0, None
        elif self._raw is not None:
            self._line += char
        else:
            self._line += char if char != "\t" else "    "
            if len(self._line.lstrip(" ")) == 1:
                self._begin_text()
            if self._block is None:
                self._decide(is_whole=False)
            if isinstance(self._block, Prose):
                self._put_settled(self._block)

    def _begin_text(self) -> None:
        """Print the empty lines before the current one, whose first character has come."""
        if not self._is_started and not isinstance(self._parse(is_whole=False), Code):
            self._line = self._line.removeprefix(" ")  # models often begin with one, which indents nothing
        if self._n_blank:
            is_code = self._context.is_code and isinstance(self._parse(is_whole=False), Code)
            for _ in range(self._n_blank if is_code else 1):
                self._row.end_line()
            self._n_blank = 0

    def _parse(self, *, is_whole: bool) -> Block | None:
        return parse_block(self._line, self._context, is_whole=is_whole)

    def _decide(self, *, is_whole: bool) -> None:
        """Find out what kind of block the line is, and begin to print it if it is text."""
        block = self._parse(is_whole=is_whole)
        if self._at and not isinstance(block, Fence | Verbatim | Code | None):
            block = Prose("", 0, self._at)  # a resize made its first characters final as they were
        if block is not None and not isinstance(block, TableRow):
            self._end_table()
        if isinstance(block, Prose):
            self._at = block.start
            self._row.put(self._format_marks(block))
        self._block = block

    def _put_settled(self, block: Prose) -> None:
        """Print the words that later text cannot change any more.

        A word ends before a space and next to a wide character; after too long a wait, it ends anywhere.
        """
        before, char = self._line[-2:-1], self._line[-1]
        is_long = len(self._line) - self._at > HOLD
        if char == " ":
            ready = self._line[self._at :]
        elif (is_wide(char) and (is_wide(before) or before.isalnum())) or (is_long and char.isalnum()):
            ready = self._line[self._at : -1]
        else:
            return
        words = ready.rstrip(" ")
        if words.strip(" ") and (is_long or inline.is_settled(ready)):
            self._row.put(inline.render(words, _HEADINGS[block.heading], is_light=self._is_light))
            self._at += len(words)

    def _end_line(self) -> None:
        if self._raw is not None and self._raw.covers(self._line):
            self._end_raw_line(self._raw)
            return
        self._raw = None
        if not self._line.strip(" "):
            self._end_table()
            self._n_blank += self._is_started
            self._context = self._context.follow(self._line, None)
            return
        if self._block is None:
            self._decide(is_whole=True)
        assert self._block is not None, "a whole line is something"
        self._put_rest(self._block, self._line[self._at :])
        self._read(self._block)
        self._is_started = True

    def _put_rest(self, block: Block, rest: str) -> None:
        """Print what is not printed yet of the current line."""
        match block:
            case Prose(heading=heading):
                rest = re.sub(r" +#+ *$", "", rest) if heading else rest
                self._row.put(inline.render(rest.rstrip(" "), _HEADINGS[heading], is_light=self._is_light))
                self._row.end_line()
            case Rule():
                self._row.put_line(Text(self._rule * min(_RULE_CELLS, self._row.limit), "dim"))
            case Fence():
                self._row.put_line(Text(rest, "dim"))
            case Code() | Verbatim():
                self._row.put_line(Text(rest))
            case TableRow():
                self._add_table_row()
            case other:
                assert_never(other)

    def _skip_shown_line(self, line: str) -> None:
        """Read a line that is on the screen already: it may open or close a block."""
        self._line = line
        if self._raw is not None and self._raw.covers(line):
            if self._raw.is_closed_by(line):
                self._raw = None
            elif isinstance(self._raw, Fence):
                self._highlighter.highlight(line)
        else:
            self._raw = None
            self._read(self._parse(is_whole=True) if line.strip(" ") else None)

    def _read(self, block: Block | None) -> None:
        """Keep what the current line, which is `block` or blank, means for the next ones."""
        self._context = self._context.follow(self._line, block)
        if isinstance(block, Fence):
            self._raw = block
            self._highlighter = Highlighter(
                "" if block.is_quoted else block.language, is_light=self._is_light
            )
        elif isinstance(block, Verbatim) and not block.is_closed_by(self._line):
            self._raw = block
        elif isinstance(block, Prose) and (end := inline.find_open_math(self._line[block.start :])):
            self._raw = Verbatim(re.compile(re.escape(end)), ends_at_blank=True)

    def _end_raw_line(self, block: Fence | Verbatim) -> None:
        is_last = block.is_closed_by(self._line)
        if isinstance(block, Verbatim):
            text = Text(self._line)
        else:
            text = Text(self._line, "dim") if is_last else self._highlighter.highlight(self._line)
        self._row.put_line(text[self._at :])
        if is_last:
            self._raw = None

    def _add_table_row(self) -> None:
        self._rows.append(self._line)
        if len(self._rows) == 2 and not is_delimiter_row(self._line):
            self._put_literally(self._rows.pop(0))

    def _end_table(self) -> None:
        rows, self._rows = self._rows, []
        if len(rows) > 1 and self._row.limit >= _COLUMN_CELLS * inline.count_columns(rows):
            self._row.put_block(inline.render_table(rows, is_light=self._is_light))
        else:
            for row in rows:
                self._put_literally(row)

    def _put_literally(self, line: str) -> None:
        self._row.put(Text(line))
        self._row.end_line()

    def _format_marks(self, block: Prose) -> Text:
        """Format the marks in front of a text."""
        text = Text(re.sub(r"[-*+](?=\s)", self._bullet, block.marks).replace(">", self._bar))
        text.highlight_regex(re.escape(self._bar), "dim")
        return text
