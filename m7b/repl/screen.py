"""The screen of a chat: answers, remarks about them, progress. Knows terminals; nothing about sessions."""

import io
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table
from rich.text import Text

from m7b.markdown import MarkdownStream
from m7b.render import Status, Theme, has_colours, note, printable
from m7b.repl.signals import delay_ctrl_c


class Screen:
    """Where a chat shows things: Markdown on a terminal, the bare text elsewhere.

    Args:
        markdown: whether to render answers; else they are shown as they are.
        is_interactive: whether somebody types. Else stdout gets the answer alone and stderr the remarks.
        theme: the colours, for a light or a dark background or none.
    """

    def __init__(
        self, *, markdown: bool = True, is_interactive: bool = True, theme: Theme = Theme.DARK
    ) -> None:
        if is_interactive and isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # remarks hold more than ASCII
        self.theme = theme
        self._markdown = markdown
        self.is_interactive = is_interactive
        self.status = Status()

    @property
    def theme(self) -> Theme:
        """The colours in use."""
        return self._theme

    @theme.setter
    def theme(self, theme: Theme) -> None:
        self._theme = theme
        self._console = Console(highlight=False, no_color=theme is Theme.NONE or not has_colours())

    @contextmanager
    def begin_answer(self, *, after: str = "") -> Iterator["AnswerView"]:
        """Open a view for one answer, or for its rest `after` some text. At the end it writes a newline."""
        stream = MarkdownStream(plain=None if self._markdown else True, theme=self.theme)
        stream.resume(after)
        answer = AnswerView(self, stream)
        try:
            yield answer
        finally:
            self.status.clear()
            stream.finish()
            if answer.has_calls:
                self.note()
            for remark in answer.remarks:
                self.note(remark, "yellow")

    def show_progress(self, text: str) -> None:
        """Show progress in one line, cut to the width of the terminal so that it can be removed again."""
        if not self._console.is_dumb_terminal:
            self.status.show(text[: self._console.width - 1])

    def show_answer(self, text: str) -> None:
        """Show an answer that was given before."""
        with delay_ctrl_c(), self.begin_answer() as answer:
            answer.write(text)

    def note(self, text: str = "", style: str = "dim") -> None:
        """Show a remark, in as many lines as it has."""
        if style == "yellow" and self.theme is Theme.LIGHT:
            style = "magenta"  # yellow on white cannot be read
        if self.is_interactive:
            self._console.print(Text(printable(text), style, overflow="fold"))
        else:
            note(text)

    def show_dim(self, text: str) -> None:
        """Show dim text that is no answer, without ending the line."""
        self._console.print(Text(printable(text), "dim"), end="", soft_wrap=True)

    def show_table(self, rows: Iterable[tuple[str, str]]) -> None:
        """Show labels and values in two columns."""
        grid = Table.grid(padding=(0, 2))
        for label, value in rows:
            grid.add_row(Text(label), Text(printable(value), "dim", overflow="fold"))
        self._console.print(grid)

    def show_raw(self, text: str) -> None:
        """Show a text exactly as it is written."""
        self._console.print(Text(printable(text)), soft_wrap=True)

    def show_pieces(self, pieces: Iterable[tuple[str, bool]]) -> None:
        """Show vocabulary entries one after another, control tokens in colour."""
        styled = ((printable(piece), "bold magenta" if is_control else "") for piece, is_control in pieces)
        self._console.print(Text.assemble(*styled), soft_wrap=True)

    def send(self, sequence: str) -> None:
        """Send a control sequence to the terminal."""
        sys.stdout.write(sequence)
        sys.stdout.flush()


class AnswerView:
    """One answer on the screen."""

    def __init__(self, screen: Screen, stream: MarkdownStream) -> None:
        self._screen = screen
        self._stream = stream
        self.has_begun = self.has_calls = False
        self.remarks: list[str] = []  # shown after the answer

    def write(self, text: str) -> None:
        """Show more of the answer."""
        self._screen.status.clear()
        self._stream.write(text)
        self.has_begun = True

    def write_call(self, text: str) -> None:
        """Show more of a call as it forms, if the screen is interactive."""
        self._screen.status.clear()
        if self._screen.is_interactive:
            self._screen.show_dim(text)
            self.has_calls = True

    def show_progress(self, text: str) -> None:
        """Show progress until the first word comes."""
        if not self.has_begun:
            self._screen.show_progress(text)

    def remark(self, text: str) -> None:
        """Show a remark now, or after the answer where that has begun."""
        if self.has_begun:
            self.remarks.append(text)
        else:
            self._screen.note(text, "yellow")
